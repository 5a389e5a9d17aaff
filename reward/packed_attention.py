"""Attention over a packed row of conversations that share their beginnings, inside transformers' own models.
What it is: one attention function, registered with transformers for the length of a forward pass, that lets
every segment of `reward.packing` see its own conversation and nothing else; and the list of models for which
that was compared with the plain forward pass. What it is not: it holds no weights and forms no batches.

Everything but attention works on each token by itself, so it runs on the packed row unchanged and without
padding. Private to transformers (5.19) and used here: `config._attn_implementation`, which a name without a
mask function makes skip all masks, and that a model's forward hands unknown keywords on to its attention;
tests/reward/test_sharing.py names the version.

Shape suffixes: T packed tokens, H hidden size, L longest conversation; G key heads, R query heads a key head, Q a
segment's tokens, S tokens it sees, E head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from reward.cpu_kernels import compiled_layers
from reward.packing import PackedRows, Segment

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NAME = "gpo_packed"
MODEL_TYPES = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")
"""Those for which tests compare packed and plain states; sliding windows and capped logits are followed."""
_ROPE_BY_BATCH = ("dynamic", "longrope")


def packing_obstacle(config: "PretrainedConfig") -> str | None:
    """Why rows of this model cannot share their beginnings exactly; None: they can."""
    if config.model_type not in MODEL_TYPES:
        return f"{config.model_type} models are not among those it was compared on ({', '.join(MODEL_TYPES)})"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _ROPE_BY_BATCH:
        return f"rotary positions of type {rope!r} depend on the longest row of a batch"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return "its attention looks ahead, so a prompt's states depend on the answer"
    return None


@torch.no_grad()
def packed_states(backbone: "PreTrainedModel", packed: PackedRows) -> Tensor:
    """Final-norm states_TH of every packed token."""
    ids, positions = (torch.tensor([ids], device=backbone.device) for ids in (packed.input_ids, packed.position_ids))
    with attention_by_segment(backbone.config, NAME, packed_attention), compiled_layers(backbone):
        output = backbone(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            packed_masks=PackedMasks(packed.segments, backbone.dtype, backbone.device),
        )
    states_TH: Tensor = output.last_hidden_state[0]
    return states_TH


@contextmanager
def attention_by_segment(config: "PretrainedConfig", name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within, the model of `config` attends with `function`, which is registered with transformers under `name`."""
    AttentionInterface.register(name, function)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


class PackedMasks:
    """The segments of a packed row and the masks of their attention, which all layers share."""

    def __init__(self, segments: list[Segment], dtype: torch.dtype, device: torch.device) -> None:
        self.segments = segments
        self._longest = max(_length(segment) for segment in segments)
        self._dtype, self.device = dtype, device
        self.tokens = max(segment.stop for segment in segments)
        self._kept: dict[tuple[int | None, torch.dtype], Tensor] = {}
        self.batches: Any = None
        """Segments that are trained together, see `reward.segment_batches`."""

    def mask(self, segment: Segment, window: int | None, dtype: torch.dtype | None = None) -> Tensor:
        """0 where a token of the segment may look, by position in the conversation, -inf elsewhere.

        In `dtype`, or in the type that was given for all: kernels of a GPU take that of their queries only.
        """
        kind = (self.window(segment, window), dtype or self._dtype)
        if kind not in self._kept:
            self._kept[kind] = self._mask_LL(*kind)
        return self._kept[kind][segment.position : _length(segment), : _length(segment)]

    def window(self, segment: Segment, window: int | None) -> int | None:
        """None when the whole conversation lies within the window."""
        return None if window is None or window >= _length(segment) else window

    @cached_property
    def borders(self) -> tuple[Tensor, Tensor, int, int]:
        """As flash-attn's varlen kernel is told: where own and seen tokens of each segment begin and end, the longest.

        Two int32 tensors [segments + 1] that begin with 0, and two numbers of tokens.
        """
        own = [segment.stop - segment.start for segment in self.segments]
        seen = [sum(stop - start for start, stop in segment.seen) for segment in self.segments]
        own_ends, seen_ends = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device) for lengths in (own, seen)
        )
        return own_ends, seen_ends, max(own), max(seen)

    def _mask_LL(self, window: int | None, dtype: torch.dtype) -> Tensor:
        place_L = torch.arange(self._longest, device=self.device)
        hidden_LL = place_L[:, None] < place_L
        if window is not None:
            hidden_LL |= place_L[:, None] - window >= place_L
        mask_LL = torch.zeros(hidden_LL.shape, dtype=dtype, device=self.device)
        return mask_LL.masked_fill_(hidden_LL, float("-inf"))


def _length(segment: Segment) -> int:
    """Tokens of its conversations up to its own end."""
    return segment.position + segment.stop - segment.start


def packed_attention(
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
    """What transformers calls in each layer, with tensors of shape (1, heads, T, head size)."""
    groups = key.shape[1]
    output = query.new_empty(query.shape[2], groups, query.shape[1] // groups, value.shape[3])
    q_GRTE = query[0].unflatten(0, (groups, -1))
    for segment in packed_masks.segments:
        own = slice(segment.start, segment.stop)
        q_GRQE = q_GRTE[:, :, own]
        # Masked attention over grouped heads would fall back to a slow kernel; a view of each key head for its query
        # heads has the same shape and copies nothing.
        k_GRSE, v_GRSE = (
            seen_part(tensor[0], segment)[:, None].expand(-1, q_GRQE.shape[1], -1, -1) for tensor in (key, value)
        )
        if softcap is not None:
            mask = packed_masks.mask(segment, sliding_window)
            found = _capped_attention(q_GRQE, k_GRSE, v_GRSE, mask, scaling, softcap)
        else:
            found = fused_attention(q_GRQE, k_GRSE, v_GRSE, packed_masks, segment, scaling, sliding_window)
        output[own] = found.permute(2, 0, 1, 3)
    return output.flatten(1, 2)[None], None


def fused_attention(
    q_GRQE: Tensor,
    k_GRSE: Tensor,
    v_GRSE: Tensor,
    packed_masks: PackedMasks,
    segment: Segment,
    scaling: float,
    window: int | None,
) -> Tensor:
    """What the segment's tokens get from those that they see, o_GRQE, by torch's own kernel."""
    # Without anything before it a segment is a plain causal row, for which kernels skip half the work.
    plain = segment.position == 0 and packed_masks.window(segment, window) is None
    mask_QS = None if plain else packed_masks.mask(segment, window, q_GRQE.dtype)
    return F.scaled_dot_product_attention(q_GRQE, k_GRSE, v_GRSE, attn_mask=mask_QS, is_causal=plain, scale=scaling)


def seen_part(tensor: Tensor, segment: Segment) -> Tensor:
    """Of keys or values (..., T, head size) those of the segment's whole conversation."""
    parts = [tensor[..., start:stop, :] for start, stop in segment.seen]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _capped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """Step by step as transformers' eager attention of Gemma-2."""
    logits = torch.tanh(query @ key.transpose(2, 3) * scale / cap) * cap + mask
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype) @ value
