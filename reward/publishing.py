"""From a model in training to a checkpoint that loads as it is.
What it is: the whole weights gathered from however they are sharded, adapters merged, gate scaling and learned tau
folded into the published form, one plain directory written. What it is not: it decides neither when nor where.
"""

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward.adapters import without_adapters
from reward.heads import PROMPT_HEAD
from reward.model import GeneralPreferenceModel
from reward.pair_model import PairModel
from reward.settings import RewardSettings

if TYPE_CHECKING:
    from reward.trainer import PairTrainer

_BACKBONE, _HEADS, _LOG_TAU, _LM_HEAD = "model.backbone.", "model.heads.", "log_tau", "lm_head.weight"


def whole_state(trainer: "PairTrainer") -> dict[str, Tensor]:
    """Every weight on the CPU, adapters added in; all workers call it, the first one has the result."""
    model = trainer.pair_model
    state: dict[str, Tensor] = model.state_dict()
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        # ZeRO-3 gives the other workers nothing.
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return without_adapters(model, state) if trainer.settings.adapter is not None else state


def publish_model(trainer: "PairTrainer", state: dict[str, Tensor], directory: Path) -> None:
    """Write the published layout with the tokenizer; called by one worker."""
    trained = trainer.pair_model
    dtype = getattr(torch, trainer.settings.precision)
    model = published_model(trained, state, dtype)
    model.save_pretrained(directory, trainer.tokenizer)


def published_model(trained: PairModel, state: dict[str, Tensor], dtype: torch.dtype) -> GeneralPreferenceModel:
    """The model as it is used, its backbone in `dtype` and its heads in float32."""
    source: GeneralPreferenceModel = trained.model
    # A copy, because making a model writes its attention into the config that it is given.
    config = copy.deepcopy(source.backbone.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        # By its class, because AutoModel would hand it to ZeRO-3, which waits for all workers.
        backbone = _plain_class(source.backbone)(config)
    model = GeneralPreferenceModel(backbone, _published_settings(trained, state))
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "heads": {}}
    for name, tensor in state.items():
        for kind, prefix in (("backbone", _BACKBONE), ("heads", _HEADS)):
            if name.startswith(prefix):
                wanted = dtype if kind == "backbone" else torch.float32
                parts[kind][name.removeprefix(prefix)] = tensor.detach().cpu().to(wanted)
    if trained.gate_factor != 1 and PROMPT_HEAD in parts["heads"]:
        prompt_head = parts["heads"][PROMPT_HEAD]
        parts["heads"][PROMPT_HEAD] = prompt_head / prompt_head.shape[1] ** 0.5
    model.backbone.load_state_dict(parts["backbone"], assign=True)
    model.heads.load_state_dict(parts["heads"])
    model.source = source.source
    if _LM_HEAD in state:
        model._live_lm_head = state[_LM_HEAD]
    return model


def _plain_class(backbone: PreTrainedModel) -> type[PreTrainedModel]:
    """The class in transformers' own code; FSDP2 puts one of its own before it."""
    kinds = (kind for kind in type(backbone).__mro__ if not kind.__name__.startswith("FSDP"))
    return cast(type[PreTrainedModel], next(kinds))


def _published_settings(trained: PairModel, state: dict[str, Tensor]) -> RewardSettings:
    tau = trained.tau if _LOG_TAU not in state else float(state[_LOG_TAU].float().exp())
    return dataclasses.replace(trained.model.settings, tau=tau / trained.gate_factor)
