"""The language model head that the published layout carries along unused: whether a checkpoint has one of its own."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reward.checkpoint import read_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

LM_HEADS = ("lm_head.weight", "embed_out.weight")
"""What files call it: all of them, and GPT-NeoX."""


def is_tied(config: "PretrainedConfig") -> bool:
    """Whether the embeddings are the head too."""
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def stored_lm_head(source: Path, backbone: "PreTrainedModel") -> dict[str, Tensor]:
    """The head in the files of a checkpoint, unless it is tied; warns where config and files differ."""
    found = read_tensors(source, LM_HEADS)
    if not is_tied(backbone.config):
        if not found:
            logger.warning(
                "%s: by its config it has a language model head of its own (tie_word_embeddings is false), but none is "
                "in its files: saved without; readers of the published layout draw one, which scores nothing",
                source,
            )
        return found
    if found and not _are_embeddings(source, backbone, found):
        logger.warning(
            "%s: by its config the language model head is tied to the embeddings (tie_word_embeddings), but another "
            "one is in its files: saved without it",
            source,
        )
    return {}


def _are_embeddings(source: Path, backbone: "PreTrainedModel", heads: dict[str, Tensor]) -> bool:
    """As they lie in the files: those of the model may have been trained since."""
    weight = backbone.get_input_embeddings().weight
    name = next(name for name, tensor in backbone.named_parameters() if tensor is weight)
    stored = read_tensors(source, (name, f"{backbone.base_model_prefix}.{name}"))
    return all(any(torch.equal(head, embedding) for embedding in stored.values()) for head in heads.values())
