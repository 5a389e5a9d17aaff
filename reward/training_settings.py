"""The settings of a training that moves the backbone, as plain values.
What it is: a frozen record with every choice checked, so that a mistake is told before a model is loaded. What it is
not: it knows no files, no cluster and no torch.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from reward.errors import RewardInputError
from reward.settings import RewardSettings, given_policies

BEST_METRICS = {"accuracy": True, "loss": False, "calibration_error": False, "cyclic_accuracy": True}
"""Metrics that can choose the best checkpoint, and whether more is better."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Low-rank adapters on the backbone's linear layers; the heads are trained in full."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: all linear layers of the backbone."""
    quantized: bool = False
    """QLoRA: the frozen backbone in 4 bits (needs bitsandbytes)."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """None stands for the default of the kind of head, or, when a reward model is continued, for what it has."""

    head: Literal["gpm", "bt"] = "gpm"
    value_head_dim: int | None = None
    gated: bool | None = None
    gate_scaling: bool = False
    """Gate L * softmax(z / sqrt(H)) instead of softmax(z); saved in the published form, scores over tau as trained."""
    l2_normalize: bool | None = None
    tau: float | None = None
    learn_tau: bool = False
    loss: Literal["logistic", "margin", "soft", "regression"] = "soft"
    """soft: cross entropy with target_prob (1 without one: logistic); regression: squared distance to its log-odds."""
    regression_target: float = 5.0
    """Log-odds that stand for certainty, which has none (regression)."""
    sft_weight: float = 0.0
    """c in (1 - c) * preference loss + c * mean negative log-likelihood of the chosen answers' tokens."""
    learning_rate: float = 2e-6
    head_learning_rate: float | None = None
    """None: the same."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    epochs: float = 2.0
    max_steps: int | None = None
    """Stop here whatever epochs say; a stream needs it."""
    batch_pairs: int = 32
    """Pairs of one step, over all workers."""
    accumulation: int = 1
    """Forward passes a worker's share of a step is cut into."""
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    """Compute type, and type of the saved backbone; master weights are float32. auto: bfloat16 where the machine that
    trains has instructions for it."""
    gradient_checkpointing: bool = False
    max_length: int = 2048
    bos_policy: Literal["reference", "single", "none"] | None = None
    eos_policy: Literal["overwrite", "append"] | None = None
    truncation: Literal["right", "prompt"] | None = None
    gate_prompt: Literal["first_message", "all_but_last"] | None = None
    cut_pairs: Literal["drop", "keep", "refuse"] = "drop"
    """Pairs of which max_length leaves no difference, or nothing of an answer."""
    adapter: AdapterSettings | None = None
    new_heads: bool = False
    """Replace the heads of a reward model that is continued."""
    evaluate_steps: int | None = None
    """None: at the end only."""
    save_steps: int | None = None
    """Steps between checkpoints to resume from; None: none."""
    best_metric: str = "accuracy"
    keep_best: int = 1
    seed: int = 0
    sharding: Literal["none", "zero1", "zero2", "zero3", "fsdp2"] = "none"
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Entries that replace those of the DeepSpeed configuration."""
    trackers: tuple[str, ...] = ()
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_pairs", "accumulation", "max_length", "keep_best"):
            if getattr(self, name) < 1:
                raise RewardInputError(f"{name} is {getattr(self, name)!r}, expected at least 1")
        if self.accumulation > self.batch_pairs:
            raise RewardInputError(
                f"gradient_accumulation_steps is {self.accumulation} and batch_pairs {self.batch_pairs}: a pair cannot "
                "be cut; expected as many pairs as steps at least"
            )
        for name in ("learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise RewardInputError(f"{name} is {getattr(self, name)!r}, expected a finite number above 0")
        if not 0 <= self.sft_weight < 1:
            raise RewardInputError(f"sft_weight is {self.sft_weight}, expected at least 0 and below 1")
        if self.best_metric not in BEST_METRICS:
            raise RewardInputError(f"best_metric is {self.best_metric!r}, expected one of: {', '.join(BEST_METRICS)}")
        if self.gate_scaling and not self.gated:
            raise RewardInputError("gate_scaling is on and gated is off; expected a gate to scale: set gated to true")
        if self.adapter is not None and self.sharding == "fsdp2":
            raise RewardInputError("sharding is fsdp2 and an adapter is given; expected none, zero1, zero2 or zero3")
        if self.adapter is not None and self.adapter.quantized and self.sharding == "zero3":
            raise RewardInputError("sharding is zero3 and adapter.quantized is on; expected none, zero1 or zero2")
        self.reward_settings()

    def reward_settings(self) -> RewardSettings:
        """The conventions of fresh heads."""
        width = (1 if self.head == "bt" else 8) if self.value_head_dim is None else self.value_head_dim
        return RewardSettings.published(width, bool(self.gated), head=self.head, **given_policies(self))

    @property
    def more_is_better(self) -> bool:
        """Of the metric that chooses the best checkpoint."""
        return BEST_METRICS[self.best_metric]
