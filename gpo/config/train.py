"""How the policy is moved toward its targets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpo.config.types import Count, Positive
from gpo.settings import Settings


class TrainConfig(Settings):
    """How the policy is moved toward its targets."""

    learning_rate: Positive = 5e-7
    """Peak rate."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """rmsprop is the paper's."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay after warm-up, over one iteration."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an iteration's steps with a rising rate."""
    epochs: Count = 1
    """Passes over an iteration's rows."""
    batch_prompts: Count = 4
    """Prompts a step; a step trains on all K answers of each."""
    gradient_accumulation_steps: Count = 1
    """Forward passes a step; each takes its share of the step's prompts, so more passes need less memory."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    length_power: Annotated[float, Field(ge=0, le=1)] = 0.0
    """LN-GPO: the log-ratio is divided by length to this power."""
    gradient_checkpointing: bool = False
    """Trade a third of the speed for memory."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints inside an iteration; 0 = only its end (placement)."""
    workers: Count = 1
    """Learner processes (placement)."""

    @model_validator(mode="after")
    def _passes_share_a_step(self) -> "TrainConfig":
        if self.batch_prompts % self.gradient_accumulation_steps:
            raise ValueError(
                f"train.gradient_accumulation_steps = {self.gradient_accumulation_steps} does not divide "
                f"train.batch_prompts = {self.batch_prompts}; choose a divisor"
            )
        return self
