"""Attention over a packed row of answers, with gradients, inside transformers' own models: the function, the layout.

On a CPU the autograd function of `reward.packed_training`: plain matrix products by segment, whose backward is faster
for rows of tens to hundreds of tokens than that of scaled_dot_product_attention. On CUDA one call of flash-attn's
varlen kernel serves all segments, whose causal mask is aligned to the end of the keys, which is what a segment behind a
shared prompt needs; without flash-attn the products.

Shapes: H heads, G heads of keys and values, T tokens of the row, D head.
"""

import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gpo.training.layout import Layout
from reward.packed_attention import PackedMasks, attention_by_segment, packing_obstacle, seen_part
from reward.packed_training import attention_dtype, training_attention

logger = logging.getLogger(__name__)


def choose_layout(config: Any, asked: str) -> Layout:
    """The layout that was asked for, or the best one the model allows, logged with the reason."""
    obstacle = packing_obstacle(config)
    if asked != "auto":
        if asked != "padded" and obstacle:
            raise ValueError(f"layout={asked!r} is not possible: {obstacle}; use 'padded' or 'auto'")
        chosen: Layout = asked  # type: ignore[assignment]
        return chosen
    if obstacle:
        logger.info("rows are padded: %s", obstacle)
        return "padded"
    return "shared"


def segment_attention(config: Any, use_flash: bool = False) -> AbstractContextManager[None]:
    """Packed rows are attended to by segment within; backward belongs inside too, for gradient checkpointing."""
    name, function = ("gpo_segments_varlen", _flash_attention) if use_flash else ("gpo_segments", training_attention)
    # `torch_compile` goes around it: segments differ from batch to batch, and dynamo fails on them.
    return attention_by_segment(config, name, torch.compiler.disable(function))


def segments_of(part: dict[str, Any]) -> dict[str, Any]:
    """The keyword that the model's forward hands on to the attention; none for a padded part."""
    if "segments" not in part:
        return {}
    return {"packed_masks": PackedMasks(part["segments"], torch.float32, part["input_ids"].device)}


def _flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed_masks: PackedMasks,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: query [1, H, T, D], keys and values [1, G, T, D] -> [1, T, H, D]."""
    from flash_attn import flash_attn_varlen_func

    own_ends, seen_ends, longest, longest_seen = packed_masks.borders
    dtype = attention_dtype(value)
    # Under autocast rotary positions turn queries and keys float32, which the kernel has not.
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)

    def seen_by_all(tensor: Tensor) -> Tensor:
        return torch.cat([seen_part(tensor[0], segment) for segment in packed_masks.segments], dim=1).transpose(0, 1)

    found: Tensor = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        seen_by_all(key),
        seen_by_all(value),
        own_ends,
        seen_ends,
        longest,
        longest_seen,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if sliding_window is None else (sliding_window - 1, 0),
        softcap=softcap or 0.0,
    )
    return found[None], None
