"""The model a training starts from: a language model with fresh heads, or a reward model whose heads go on.
What it is: which of the two a directory holds, float32 master weights, adapters and checkpointing as set. What it is
not: it wraps nothing for training.
"""

import dataclasses
import logging
import math
import os
from pathlib import Path

import torch
from transformers import AutoModel

from reward.adapters import add_adapters, quantization
from reward.checkpoint import check_directory, load_config, read_tensors
from reward.errors import RewardInputError
from reward.head_settings import HeadTrainingSettings
from reward.heads import VALUE_HEAD, open_heads
from reward.model import GeneralPreferenceModel, choose_attention
from reward.settings import RewardSettings, given_policies
from reward.training_settings import TrainingSettings

logger = logging.getLogger(__name__)


def has_heads(directory: str | Path) -> bool:
    """Whether a directory holds a reward model; raises RewardInputError for what is no checkpoint directory."""
    check_directory(Path(directory))
    return VALUE_HEAD in read_tensors(Path(directory), [VALUE_HEAD])


def open_model(directory: str | Path, settings: TrainingSettings) -> GeneralPreferenceModel:
    """The model in float32, ready to be trained; raises RewardInputError where directory and settings do not fit."""
    source = Path(directory)
    trust = settings.trust_remote_code
    if settings.adapter is not None and settings.adapter.quantized:
        model = _open_quantized(source, settings)
    elif has_heads(source) and not settings.new_heads:
        model = GeneralPreferenceModel.from_pretrained(source, dtype="float32", trust_remote_code=trust)
    else:
        model = GeneralPreferenceModel.from_backbone(
            source, settings.reward_settings(), seed=settings.seed, dtype="float32", trust_remote_code=trust
        )
    model.settings = _settings_of(source, model.settings, settings)
    if settings.gate_scaling and (settings.new_heads or not has_heads(source)):
        _to_published_form(model)
    model.heads.l2_normalize = model.settings.l2_normalize
    if settings.adapter is not None:
        add_adapters(model.backbone, settings.adapter, settings.seed)
    if settings.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if settings.adapter is not None:
            model.backbone.enable_input_require_grads()
    return model


@torch.no_grad()
def _to_published_form(model: GeneralPreferenceModel) -> None:
    """Fresh heads are drawn, and tau is given, for the scaled gate; `PairModel` expects the published form."""
    assert model.heads.prompt_head is not None  # The settings are checked: there is no scaling without a gate.
    model.heads.prompt_head.weight.div_(math.sqrt(model.heads.prompt_head.in_features))
    model.settings = dataclasses.replace(model.settings, tau=model.settings.tau / (model.settings.value_head_dim // 2))


def _settings_of(source: Path, found: RewardSettings, settings: TrainingSettings) -> RewardSettings:
    """Those of the heads that go on, with policies given for this training; fresh heads have them already."""
    if not has_heads(source) or settings.new_heads:
        return found
    kept = continued_settings(source, found, settings)
    if settings.tau is not None and settings.gate_scaling:
        return dataclasses.replace(kept, tau=settings.tau / (found.value_head_dim // 2))
    return kept


def continued_settings(
    source: Path, found: RewardSettings, asked: TrainingSettings | HeadTrainingSettings
) -> RewardSettings:
    """Those of a reward model whose heads go on, with the policies that a training asks for.

    Raises RewardInputError where it asks for other heads.
    """
    wanted = asked.reward_settings()
    other_width = (asked.value_head_dim is not None or asked.head == "bt") and (
        wanted.value_head_dim != found.value_head_dim
    )
    if other_width or (asked.gated is not None and asked.gated != found.gated):
        raise RewardInputError(
            f"{source} is a reward model with head {found.head}, value_head_dim {found.value_head_dim} and gated "
            f"{found.gated}, the training asks for {wanted.head}, {wanted.value_head_dim} and {wanted.gated}; leave "
            "them out to go on with its heads, or set new_heads to true to replace them"
        )
    logger.info("going on with the heads of %s: %s of width %d", source, found.head, found.value_head_dim)
    return found.with_policies(**given_policies(asked))


def _open_quantized(source: Path, settings: TrainingSettings) -> GeneralPreferenceModel:
    check_directory(source)
    config = load_config(source, settings.trust_remote_code)
    # Each worker's own GPU: transformers would give the first one to all of them.
    place = {"device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}} if torch.cuda.is_available() else {}
    backbone = AutoModel.from_pretrained(
        source,
        config=config,
        quantization_config=quantization(settings.precision),
        attn_implementation=choose_attention(config, None),
        use_safetensors=True,
        trust_remote_code=settings.trust_remote_code,
        **place,
    )
    if has_heads(source) and not settings.new_heads:
        heads, saved = open_heads(source, int(config.get_text_config().hidden_size))
        model = GeneralPreferenceModel(backbone, saved)
        model.heads.load_state_dict(heads.state_dict())
    else:
        model = GeneralPreferenceModel(backbone, settings.reward_settings())
        model.heads.initialise(settings.seed)
    model.heads.to(backbone.device)
    model.source = source
    return model
