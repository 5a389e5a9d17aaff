"""Where a run's numbers and models are copied to: trackers and the hub."""

from typing import Literal

from gpo.settings import Settings

Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrackingConfig(Settings):
    """Trackers that get copies of metrics.jsonl, evaluations and samples (placement)."""

    report_to: list[Tracker] = []
    """Any of them; each is a package of its own."""
    project: str = "gpo"
    """Project in the trackers; the run has its own name in it."""


class HubConfig(Settings):
    """Where a finished model goes: the checkpoint that evaluation.choose chose, or a reward model (placement)."""

    push_to: str | None = None
    """Repository on the model hub, OWNER/NAME; None: nothing is pushed."""
    private: bool = True
    """Whether a repository that is made for it is private."""
