"""How the policy is moved toward its targets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpo.config.types import Count, Positive, Rank
from gpo.settings import Settings


class LoraSettings(Settings):
    """A low-rank adapter is trained instead of all weights; what is published is merged."""

    rank: Rank = 16
    """Rank of the update."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapter's input. Above 0 the first log-ratio is no longer exactly 0."""
    modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get one."""


class StopConfig(Settings):
    """Rules that end an iteration's training early; none is on by itself."""

    kl: Positive | None = None
    """Nats an answer: mean squared log-ratio / 2."""
    length_growth: Positive | None = None
    """Share by which the expected length under the moved policy may grow."""
    collapse: Positive | None = None
    """Nats by which the mean log-ratio of all answers may fall."""
    window: Count = 5
    """Steps that are averaged."""


class TrainConfig(Settings):
    """How the policy is moved toward its targets."""

    objective: Literal["regression", "dpo", "ipo"] = "regression"
    """regression on targets (GPO, SPPO); dpo and ipo on the best and worst answer, for comparison."""
    select: Literal["all", "best-and-worst", "top-and-bottom"] = "all"
    """Which of a prompt's answers are trained on, ranked by score; the paper's objective has all."""
    select_n: Count = 1
    """Answers at each end, for top-and-bottom."""
    standardise: Positive | None = None
    """Targets of an iteration are scaled to this root mean square in nats. None: as they are."""
    length_power: Annotated[float, Field(ge=0)] = 0.0
    """LN-GPO: the log-ratio is divided by length to this power; 1 is the paper's."""
    pair_beta: Positive = 0.1
    """beta of dpo and ipo."""
    pull: Annotated[float, Field(ge=0, le=1)] = 0.0
    """KL pull to the anchor: 0 none, 1 to nothing but the anchor."""
    anchor_every: Annotated[int, Field(ge=0)] = 0
    """The anchor is the starting policy (0), or moves to the current one every so many iterations."""
    sft: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the log-likelihood of each prompt's best answer, per token."""
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
    """Prompts a step, over all workers; a step trains on the chosen answers of each."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    lora: LoraSettings | None = None
    """Train an adapter. None: all weights."""
    stop: StopConfig = StopConfig()
    batch_tokens: Count = 4096
    """Tokens a forward pass of a worker; a step takes as many passes as it needs, so fewer need less memory
    (placement)."""
    layout: Literal["auto", "padded", "packed", "shared"] = "auto"
    """How rows lie in memory. auto: a prompt once for all its answers where the model allows it (placement)."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute layers again in the backward pass: less memory for a third of the speed. auto: where this machine's
    memory would not hold the run otherwise (placement)."""
    activation_offload: bool = False
    """Keep activations in the host's memory until the backward pass; for GPUs (placement)."""
    reference: Literal["once", "live"] = "once"
    """The sampling policy's log-probabilities: once before the first step, or by a second model in every step."""
    sharding: Literal["none", "zero1", "zero2", "zero3", "fsdp"] = "none"
    """How several workers share weights and optimizer; zero needs DeepSpeed and a `policy.dtype` other than
    float16, fsdp a GPU (placement)."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints inside an iteration; 0 = only its end (placement)."""
    workers: Count = 1
    """Learner processes (placement)."""

    @model_validator(mode="after")
    def _pairs_are_pairs(self) -> "TrainConfig":
        if self.objective != "regression" and self.select == "all":
            raise ValueError(f"train.objective = {self.objective!r} needs pairs; set train.select=best-and-worst")
        unread = {"pull": self.pull, "length_power": self.length_power, "standardise": self.standardise}
        found = [f"train.{name} = {value}" for name, value in unread.items() if value]
        if self.objective != "regression" and found:
            raise ValueError(
                f"train.objective = {self.objective!r} has no targets, so {', '.join(found)} would do nothing; leave "
                "it out, or set train.objective=regression"
            )
        if self.sharding != "none" and self.lora is not None:
            raise ValueError(
                f"train.sharding = {self.sharding!r} with train.lora: an adapter is small enough to be whole on every "
                "worker; set train.sharding=none"
            )
        return self
