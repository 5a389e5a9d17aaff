"""Attention over a packed row of answers, with gradients, inside transformers' own models.

What it is: one attention function, registered with transformers, that lets every segment of a packed `layout` see its
own conversation and nothing else, and the choice of a layout. All other layers work on each token by itself and need no
change. What it is not: the scorer's `reward.packed_attention` does the same for inference only, on kernels whose
backward is slow on a CPU.

On a CPU plain matrix products are used: for rows of tens to hundreds of tokens their backward is faster than that of
scaled_dot_product_attention. On CUDA one call of flash-attn's varlen kernel serves all segments, whose causal mask is
aligned to the end of the keys, which is what a segment behind a shared prompt needs; without flash-attn the products.

Private to transformers (5.19) and used here: `config._attn_implementation`, which a name without a mask function makes
skip all masks, and that a model's forward hands unknown keywords on to its attention; tests/contract names the version.

Shapes: H heads, G heads of keys and values, T tokens of the row, A tokens of a segment, L of its conversation, D head.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from gpo.training.layout import Layout
from reward.packed_attention import packing_obstacle
from reward.packing import Segment

logger = logging.getLogger(__name__)

NAME = "gpo_segments"


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


@contextmanager
def segment_attention(config: Any) -> Iterator[None]:
    """Packed rows are attended to by segment within; backward belongs inside too, for gradient checkpointing."""
    AttentionInterface.register(NAME, _attend)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class SegmentMasks:
    """The segments of a packed row and what all layers of a forward pass share."""

    def __init__(self, segments: Sequence[Segment], use_flash: bool = False) -> None:
        self.segments = segments
        self.use_flash = use_flash
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def mask(self, length: int, seen: int, window: int | None, like: Tensor) -> Tensor:
        """[A, L]: 0 where a token may look, -inf elsewhere; the segment is the end of its conversation."""
        key = (length, seen, window)
        if key not in self._masks:
            query = torch.arange(seen - length, seen, device=like.device)[:, None]
            back = query - torch.arange(seen, device=like.device)
            hidden = back < 0 if window is None else (back < 0) | (back >= window)
            self._masks[key] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
        return self._masks[key]


def segments_of(part: dict[str, Any], use_flash: bool = False) -> dict[str, Any]:
    """The keyword that the model's forward hands on to the attention; none for a padded part."""
    return {"segment_masks": SegmentMasks(part["segments"], use_flash)} if "segments" in part else {}


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    segment_masks: SegmentMasks,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: query [1, H, T, D], keys and values [1, G, T, D] -> [1, T, H, D]."""
    if segment_masks.use_flash:
        return _flash(query, key, value, segment_masks, scaling, sliding_window, softcap), None
    heads, groups = query.shape[1], key.shape[1]
    found = []
    for segment in segment_masks.segments:
        length, seen = segment.stop - segment.start, sum(stop - start for start, stop in segment.seen)
        # Heads that share keys lie behind each other, so one product per group serves them all.
        own = query[0, :, segment.start : segment.stop].reshape(groups, -1, query.shape[3])
        logits = (own * scaling) @ _gather(key, segment).transpose(1, 2)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits = logits.view(groups, heads // groups, length, seen)
        shown = logits + segment_masks.mask(length, seen, sliding_window, logits)
        weights = torch.softmax(shown, -1).view(groups, -1, seen)
        found.append((weights @ _gather(value, segment)).view(heads, length, -1))
    return torch.cat(found, dim=1).transpose(0, 1)[None], None


def _gather(tensor: Tensor, segment: Segment) -> Tensor:
    """Keys or values [G, L, D] of the segment's whole conversation."""
    parts = [tensor[0, :, start:stop] for start, stop in segment.seen]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: SegmentMasks,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    lengths = [segment.stop - segment.start for segment in masks.segments]
    seen = [sum(stop - start for start, stop in segment.seen) for segment in masks.segments]

    def ends(counts: list[int]) -> Tensor:
        return torch.tensor([0, *counts], device=query.device).cumsum(0).int()

    found: Tensor = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        torch.cat([_gather(key, segment) for segment in masks.segments], dim=1).transpose(0, 1),
        torch.cat([_gather(value, segment) for segment in masks.segments], dim=1).transpose(0, 1),
        ends(lengths),
        ends(seen),
        max(lengths),
        max(seen),
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )
    return found[None]
