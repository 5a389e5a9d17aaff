"""The settings of a training of heads on a frozen backbone, as plain values.
What it is: a frozen record with every choice checked. What it is not: it knows no files and no torch.
"""

import math
from dataclasses import dataclass
from typing import Literal

from reward.errors import RewardInputError
from reward.settings import RewardSettings, given_policies


@dataclass(frozen=True, kw_only=True)
class HeadTrainingSettings:
    """None stands for the default of the kind of head, or, when a reward model is continued, for what it has."""

    head: Literal["gpm", "bt"] = "gpm"
    value_head_dim: int | None = None
    """Embedding width: 8 for gpm; bt has 1."""
    gated: bool | None = None
    l2_normalize: bool | None = None
    """True for gpm; bt has none."""
    tau: float | None = None
    """0.1 for gpm, 1.0 for bt."""
    learning_rate: float = 3e-3
    """At the first step; it falls linearly to 0."""
    weight_decay: float = 0.01
    epochs: int = 60
    batch_pairs: int = 256
    loss: Literal["logistic", "margin", "soft", "regression"] = "soft"
    """As in `TrainingSettings`; with margin the pairs' target_prob must be 1."""
    regression_target: float = 5.0
    seed: int = 0
    max_length: int = 2048
    bos_policy: Literal["reference", "single", "none"] | None = None
    eos_policy: Literal["overwrite", "append"] | None = None
    truncation: Literal["right", "prompt"] | None = None
    gate_prompt: Literal["first_message", "all_but_last"] | None = None
    cut_pairs: Literal["drop", "keep", "refuse"] = "drop"
    """Pairs of which max_length leaves no difference, or nothing of an answer."""
    new_heads: bool = False
    """Replace the heads of a reward model that is continued."""
    batch_tokens: int = 8192
    """Padded tokens in one forward pass."""

    def __post_init__(self) -> None:
        """Raises RewardInputError for a value that cannot be."""
        for field in ("epochs", "batch_pairs", "max_length", "batch_tokens"):
            if getattr(self, field) < 1:
                raise RewardInputError(f"{field} is {getattr(self, field)!r}, expected at least 1")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise RewardInputError(
                f"learning_rate is {self.learning_rate!r} and weight_decay {self.weight_decay!r}, expected "
                "finite numbers, above 0 and at least 0"
            )
        self.reward_settings()

    def reward_settings(self) -> RewardSettings:
        """The conventions of fresh heads."""
        width = (1 if self.head == "bt" else 8) if self.value_head_dim is None else self.value_head_dim
        return RewardSettings.published(width, bool(self.gated), head=self.head, **given_policies(self))
