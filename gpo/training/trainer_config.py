"""GPOConfig: the arguments of `GPOTrainer`, beside those of TRL and transformers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, Literal, get_args, get_origin

import torch
from trl import KTOConfig

from gpo.targets import LogZ, Method
from gpo.training.layout import Layout

Objective = Literal["regression", "dpo", "ipo"]
Select = Literal["all", "best-and-worst", "top-and-bottom"]
LayoutOrAuto = Literal[Layout, "auto"]
"""In one Literal: transformers' parser of a command line refuses a union."""
UNREAD_FIELDS = {
    "per_device_train_batch_size per_device_eval_batch_size precompute_ref_batch_size auto_find_batch_size": (
        "set batch_prompts (prompts a step, over all workers) and batch_tokens (tokens a forward pass)"
    ),
    "train_sampling_strategy dataloader_drop_last dataloader_num_workers data_seed pad_to_multiple_of": (
        "steps hold whole prompts in an order that seed decides, and layout says how rows lie"
    ),
    "dataset_num_proc": "rows are prepared by the process itself",
    "label_smoothing_factor": "log-ratios are regressed on targets; no label is smoothed",
    "loss_type desirable_weight undesirable_weight": "set objective; this loss_type keeps KTO's KL rows away",
    "router_aux_loss_coef": "the loss of a mixture's router is not added",
    "logging_nan_inf_filter": "a loss that is not finite ends the training",
    "torch_empty_cache_steps": "buffers are kept from step to step",
}
"""Arguments of TRL and transformers that nothing here reads, and what to set instead."""
ONLY_REGRESSION = ("pull", "length_power", "standardise", "clamp")
"""What shapes targets, and the log-ratio that is compared with them."""

POSITIVE = "clamp standardise target_beta tau beta stop_kl stop_length_growth stop_collapse"
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    POSITIVE: ("a positive finite number", lambda value: 0 < value < math.inf),
    "select_n batch_prompts batch_tokens stop_window": (
        "at least 1, whole",
        lambda value: value >= 1 and value % 1 == 0,
    ),
    "pull": ("0..1", lambda value: 0 <= value <= 1),
    "length_power sft": ("a finite number of at least 0", lambda value: 0 <= value < math.inf),
}
"""What numbers may be, in words and as a test: as in a run (`gpo.config`). None only where it is the default."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class GPOConfig(KTOConfig):
    """TRL and transformers training arguments, with those of GPO and defaults that suit it.

    Raises ValueError for values that contradict each other or mean nothing here, before a model is loaded.
    """

    objective: Objective = _option("regression", "regression on targets (GPO, SPPO), or dpo or ipo on pairs.")
    length_power: float = _option(0.0, "LN-GPO: divide the log-ratio by length to this power.")
    target_method: Method = _option("gpo", "How targets are made from scores or tables.")
    target_beta: float | None = _option(None, "Strength of the pull to the reference in those targets.")
    tau: float = _option(1.0, "Temperature of the scores.")
    clamp: float | None = _option(None, "Bound of targets in nats; applied last, before any pull.")
    exclude_self: bool = _option(False, "Leave an answer's comparison with itself out.")
    log_z: LogZ = _option("zero", "What stands for log Z.")
    standardise: float | None = _option(None, "Scale all targets to this root mean square in nats.")
    select: Select = _option("all", "Which of a prompt's answers are trained on.")
    select_n: int = _option(1, "How many at each end, for top-and-bottom; fewer where a prompt has fewer answers.")
    pull: float = _option(0.0, "KL pull to an anchor policy, 0..1; its log-probabilities are `anchor_logps`.")
    sft: float = _option(0.0, "Weight of the log-likelihood of each prompt's best answer, per token.")
    batch_prompts: int = _option(16, "Prompts a step, with all their answers, over all workers.")
    batch_tokens: int = _option(4096, "Computed tokens a forward pass, of one worker.")
    layout: LayoutOrAuto = _option("auto", "Rows padded, packed, or packed with shared prompts.")
    compute_dtype: Literal["auto", "bfloat16", "float32"] = _option("auto", "auto follows bf16 and fp16.")
    reference_folder: str | None = _option(None, "Where reference log-probabilities are kept.")
    stop_kl: float | None = _option(None, "Stop when the KL estimate passes it; see gpo.training.watch.")
    stop_length_growth: float | None = _option(None, "Stop when the expected length grows by more.")
    stop_collapse: float | None = _option(None, "Stop when the mean log-ratio falls by more nats.")
    stop_window: int = _option(5, "Steps the rules average over.")
    optim: str = _option("rmsprop", "Optimizer; RMSProp is the paper's.")
    num_train_epochs: float = _option(1.0, "Passes over the rows; 1 is the paper's.")
    gradient_checkpointing: bool = _option(False, "Trade speed for memory.")
    max_length: int | None = _option(None, "None: rows are used as they are.")
    loss_type: str = _option("apo_zero_unpaired", "Leave: it keeps KTO's KL rows away.")
    precompute_ref_log_probs: bool = _option(True, "Once, before the first step; False: live.")
    logging_nan_inf_filter: bool = _option(False, "A loss that is not finite ends the training and is not hidden.")
    remove_unused_columns: bool = _option(False, "Rows are used as they are.")

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for names, instead in UNREAD_FIELDS.items():
            for name in names.split():
                value = getattr(self, name)
                # TRL makes None of pad_to_multiple_of="auto", and dataclasses.replace gives that back.
                if value != defaults[name] and (name, value) != ("pad_to_multiple_of", None):
                    raise ValueError(f"{name}={value!r} has no effect on a GPOTrainer: {instead}")
        if self.compute_dtype == "float32":
            # TRL computes in bfloat16 unless told otherwise, the policy only: the reference would not agree with it.
            self.bf16 = False
        super().__post_init__()
        self._check_values()
        if self.activation_offloading and not torch.cuda.is_available():
            raise ValueError(
                "activation_offloading=True needs a GPU; use gradient_checkpointing, or fewer batch_tokens"
            )
        if self.objective != "regression" and self.select == "all":
            raise ValueError(
                f"objective={self.objective!r} needs pairs; set select='best-and-worst' (or 'top-and-bottom')"
            )
        unread = [f"{name}={getattr(self, name)}" for name in ONLY_REGRESSION if getattr(self, name)]
        if self.objective != "regression" and unread:
            raise ValueError(
                f"objective={self.objective!r} has no targets, so {', '.join(unread)} would do nothing; leave it out, "
                "or set objective='regression'"
            )
        if self.max_length is not None:
            raise ValueError(f"max_length={self.max_length}: rows are used as they are; cut them beforehand")

    def _check_values(self) -> None:
        """A word that is misspelt would train something else, and a clamp below 0 is a target of its own."""
        for option in fields(self):
            words, value = _words(option.type), getattr(self, option.name)
            if words and value not in words:
                raise ValueError(f"{option.name} is {value!r}; expected one of {', '.join(map(repr, words))}")
        for names, (expected, is_within) in RANGES.items():
            for name in names.split():
                value, may_be_none = getattr(self, name), getattr(GPOConfig, name) is None
                if not (value is None and may_be_none) and not (isinstance(value, Real) and is_within(value)):
                    raise ValueError(f"{name} is {value!r}; expected {expected}")


def _words(kind: Any) -> tuple[str, ...]:
    """What an option of this type may be, where the type is a Literal; nothing for other types."""
    return get_args(kind) if get_origin(kind) is Literal else ()
