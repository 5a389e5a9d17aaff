"""Training of a reward model: what `gpo reward train` reads."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gpo.config.cluster import ClusterConfig
from gpo.config.tracking import HubConfig, Tracker
from gpo.config.types import MOST_EPOCHS, Count, Positive, Rank, Seed, Width
from gpo.settings import Settings


class SourceConfig(Settings):
    """One data set of preference pairs."""

    path: str
    """.json, .jsonl, .parquet, a folder of them, or hub:NAME[:SPLIT]."""
    name: str = ""
    """In metrics; empty: the file's name."""
    weight: Positive | None = None
    """Share of an epoch relative to the others' weights; None for all: each pair once an epoch."""
    template: bool = True
    """False: the published custom form, instruction and answer joined by a space without chat template."""
    keep_repeats: bool = False
    """Rows that repeat an earlier one are used too."""


class AdapterConfig(Settings):
    """LoRA or QLoRA."""

    rank: Rank = 16
    """Of the update of each adapted layer."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Before the adapters."""
    targets: tuple[str, ...] = ()
    """Layers to adapt, by the last part of their name; empty: all linear layers."""
    quantized: bool = False
    """QLoRA: keep the frozen backbone in 4 bits (needs bitsandbytes)."""


class RewardTrainConfig(Settings):
    """Training of a GPM or Bradley-Terry model: heads on a frozen backbone, or the whole model.

    None stands for the default of `tune` or of the kind of head.
    """

    backbone: str
    """Hugging Face directory of a language model, or of a reward model to continue (its heads go on)."""
    train: str | tuple[SourceConfig, ...]
    """Preference pairs: a path, or a list of sources with weights."""
    heldout: str | tuple[SourceConfig, ...] | None = None
    """Pairs that are only measured on."""
    output: str
    """Directory to write: published layout, tokenizer, training_metrics.json."""
    tune: Literal["heads", "full", "adapter"] = "heads"
    """heads: the backbone stays as it is and is read once; full: every weight; adapter: LoRA, and heads in full."""
    head: Literal["gpm", "bt"] = "gpm"
    """gpm: embedding and skew product, any preference; bt: one reward."""
    value_head_dim: Width | None = None
    """Embedding width, even; None: 8, or that of a continued model. Bradley-Terry has 1."""
    gated: bool | None = None
    """Weigh the blocks of the embedding by a gate that reads the prompt; None: no, or as a continued model has it."""
    gate_scaling: bool = False
    """Train the gate as L * softmax(z / sqrt(H)); saved in the published form with the same probabilities."""
    l2_normalize: bool | None = None
    """Embeddings of length 1; None: yes for gpm."""
    tau: Positive | None = None
    """Temperature of the preference; None: 0.1 for gpm, 1 for bt."""
    learn_tau: bool = False
    """Optimise tau too, from `tau` on."""
    loss: Literal["logistic", "margin", "soft", "regression"] = "soft"
    """soft: cross entropy with target_prob (1 where a row has none: logistic); regression: on its log-odds."""
    regression_target: Positive = 5.0
    """Log-odds that stand for certainty."""
    sft_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the chosen answers' negative log-likelihood (a token), from the same forward pass."""
    learning_rate: Positive | None = None
    """Largest one; None: 3e-3 for heads, 2e-6 for full, 1e-4 for adapter."""
    head_learning_rate: Positive | None = None
    """Of the heads when more is trained; None: learning_rate."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """AdamW's; None: 0.01 for heads, 0 otherwise."""
    schedule: Literal["cosine", "linear", "constant"] | None = None
    """None: linear for heads, cosine otherwise."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps; none when only heads are trained."""
    epochs: Annotated[float, Field(gt=0, le=MOST_EPOCHS)] | None = None
    """Passes over the pairs; None: 60 for heads, 2 otherwise."""
    max_steps: Count | None = None
    """Stop here; a stream needs it."""
    batch_pairs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Pairs a step, over all workers; None: 256 for heads, 32 otherwise."""
    gradient_accumulation_steps: Count = 1
    """Forward passes that each worker's share of a step is cut into; no more than batch_pairs."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this length."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute type, and type of the saved backbone; master weights are float32. auto: bfloat16 where the machine that
    trains has instructions for it. heads: as the backbone is stored."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass, for memory."""
    seed: Seed = 0
    """Start of the heads and order of the pairs."""
    max_length: Count = 2048
    """Longest conversation in tokens."""
    bos_policy: Literal["reference", "single", "none"] | None = None
    """BOS tokens: as template and tokenizer give them, one, or none. None, here and for the next three: the published
    convention (the first one), or what a continued model has."""
    eos_policy: Literal["overwrite", "append"] | None = None
    """Whether EOS takes the place of the last token."""
    truncation: Literal["right", "prompt"] | None = None
    """Which end of a longer conversation goes."""
    gate_prompt: Literal["first_message", "all_but_last"] | None = None
    """What the gate reads; all_but_last suits system prompts."""
    cut_pairs: Literal["drop", "keep", "refuse"] = "drop"
    """Pairs of which max_length leaves no difference or no answer."""
    stream_buffer: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Groups in the shuffle buffer of a stream, which is filled before the first step; 0: data are read at once."""
    adapter: AdapterConfig = AdapterConfig()
    """With tune = adapter."""
    new_heads: bool = False
    """Replace the heads of a reward model that is continued."""
    evaluate_steps: Count | None = None
    """Steps between evaluations; None: at the end only."""
    save_steps: Count | None = None
    """Steps between checkpoints to go on from; None: none."""
    best_metric: Literal["accuracy", "loss", "calibration_error", "cyclic_accuracy"] = "accuracy"
    """Chooses among evaluated steps."""
    keep_best: Count = 1
    """Best checkpoints to keep; the first is the result."""
    workers: Count = 1
    """Processes that train, over the whole cluster; each takes `cluster.learner_cpus` and `cluster.learner_gpus`, by
    default a GPU where the cluster has any."""
    sharding: Literal["none", "zero1", "zero2", "zero3", "fsdp2"] = "none"
    """How the model is spread over workers."""
    deepspeed: dict[str, Any] = {}
    """Entries that replace those of the DeepSpeed configuration."""
    trackers: tuple[Tracker, ...] = ()
    """Copies of the metrics: tensorboard (in OUTPUT/training/tensorboard), wandb, trackio."""
    trust_remote_code: bool = False
    """Run Python code that lies in the backbone's directory."""
    cache: str = "models/hidden-states"
    """heads: folder for the backbone's states, which a twin on the same pairs uses again."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the workers run."""
    hub: HubConfig = HubConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> "RewardTrainConfig":
        if self.tune == "heads":
            self._check_heads()
        if self.cluster.storage is not None:
            raise ValueError("cluster.storage is set, and a reward model is written to output alone; leave it out")
        if self.stream_buffer and self.max_steps is None:
            raise ValueError("stream_buffer is set and max_steps is not; a stream has no end: give max_steps")
        if self.heldout is None and (self.evaluate_steps or self.keep_best > 1):
            raise ValueError("evaluate_steps or keep_best is set and heldout is not; there is nothing to measure on")
        if self.sharding == "fsdp2" and self.tune == "adapter":
            raise ValueError("sharding is fsdp2 and tune is adapter; expected sharding none or zero1 to zero3")
        return self

    def _check_heads(self) -> None:
        wrong = [
            name
            for name, followed in _FOLLOWED_BY_HEADS.items()
            if name in self.model_fields_set and getattr(self, name) not in followed
        ]
        if self.epochs is not None and self.epochs % 1:
            wrong.append("epochs with a fraction")
        if any(source.weight is not None for source in sources_of(self.train)):
            wrong.append("weight of a source")
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not with tune = heads; expected tune = full or adapter")


_FOLLOWED_BY_HEADS: dict[str, tuple[Any, ...]] = {
    "gate_scaling": (False,),
    "learn_tau": (False,),
    "sft_weight": (0.0,),
    "head_learning_rate": (None,),
    "schedule": (None, "linear"),
    "warmup_ratio": (0.0,),
    "max_steps": (None,),
    "gradient_accumulation_steps": (1,),
    "max_grad_norm": (),
    "dtype": ("auto",),
    "gradient_checkpointing": (False,),
    "stream_buffer": (0,),
    "adapter": (AdapterConfig(),),
    "evaluate_steps": (None,),
    "save_steps": (None,),
    "best_metric": ("accuracy",),
    "keep_best": (1,),
    "workers": (1,),
    "sharding": ("none",),
    "deepspeed": ({},),
    "trackers": ((),),
    "trust_remote_code": (False,),
    "cluster": (ClusterConfig(),),
}
"""What only larger trainings read -> the values that a training of heads follows all the same."""

TRAINING_PLACEMENT = ("cluster", "cache", "trackers", "save_steps", "hub")
"""Keys that may change when a training goes on; workers are not among them, because they change the last digits."""


def sources_of(given: str | tuple[SourceConfig, ...] | None) -> tuple[SourceConfig, ...]:
    """A list in any case."""
    if given is None:
        return ()
    return (SourceConfig(path=given),) if isinstance(given, str) else given
