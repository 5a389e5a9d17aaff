"""What is measured after each iteration, and what stops a run."""

from typing import Annotated, Literal

from pydantic import Field

from gpo.config.types import Count, Positive
from gpo.settings import Settings


class EvaluationConfig(Settings):
    """Held-out evaluation after each iteration."""

    samples: Count = 4
    """Answers a prompt from each checkpoint."""
    kl_prompts: Count = 64
    """Prompts whose first answer enters the KL estimate."""
    choose: Literal["last", "best", "nash"] = "last"
    """The checkpoint to take: the last, the best against the start, or the heaviest of the Nash mixture (placement)."""
    choose_by: str | None = None
    """The judge that `choose` listens to; None: the first one (placement)."""


class CanaryConfig(Settings):
    """Trainer against engine: log-probabilities of fixed texts after each publish."""

    largest_noise_nats: Positive = 0.1
    """Mean gap a token before iteration 1 beyond which trainer and engine are called different models."""
    factor: Annotated[float, Field(gt=1)] = 4.0
    """A later gap beyond this many times the noise floor stops the run."""
