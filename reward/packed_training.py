"""Attention over a packed row of conversations with a gradient, for training.
What it is: the attention of `reward.packed_attention`, forward and backward, as one autograd function for all segments
of a layer, which the policy's trainer (`gpo.training.segment_attention`) uses too. Probabilities are computed again in
the backward pass, so that memory grows with the tokens and not with their square. What it is not: it forms no batches
and computes no loss.

The backward pass goes step by step ("eager"), because that of the fused kernels is slow for short rows on a CPU; the
forward pass is theirs in half precision, where it takes half the time, and step by step in float32, where that is
nearly as fast and is what the backward pass computes again. One function for all segments, because slicing under
autograd would fill a tensor of the whole row with zeros for every segment; short segments are computed together
(`reward.segment_batches`). Under autocast products run in its type, and so do the passes over logits and
probabilities between them, which take half the time of casts to float32 and back and leave gradients as near to exact
ones; sums within a pass are float32.

Private to torch (2.13) and used here: `torch._softmax_backward_data`; tests/contract/test_torch.py names the version.

Shape suffixes: T packed tokens, G key heads, R query heads a key head, Q a segment's tokens, S tokens it sees, E head
size, B segments of a batch, C = B * G, N = Q * R.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from reward.packed_attention import PackedMasks, fused_attention
from reward.packing import PackedRows
from reward.segment_batches import SegmentBatch, batches_of, padded, taken

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "gpo_packed_training"


def use_packed_attention(backbone: "PreTrainedModel") -> None:
    """From now on this model's attention goes by segments: it runs packed rows only."""
    AttentionInterface.register(NAME, training_attention)
    backbone.config._attn_implementation = NAME


def trained_states(backbone: nn.Module, packed: PackedRows, device: torch.device) -> Tensor:
    """Final-norm states_TH of every packed token, with a gradient; `use_packed_attention` comes before."""
    ids, positions = (torch.tensor([ids], device=device) for ids in (packed.input_ids, packed.position_ids))
    masks = PackedMasks(packed.segments, torch.float32, device)
    output = backbone(input_ids=ids, position_ids=positions, use_cache=False, packed_masks=masks)
    states_TH: Tensor = output.last_hidden_state[0]
    return states_TH


def training_attention(
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
    rule = _Rule(packed_masks, scaling, sliding_window, softcap, attention_dtype(value))
    return _SegmentAttention.apply(query, key, value, rule), None


def attention_dtype(value: Tensor) -> torch.dtype:
    """The type that attention computes in: the autocast's, or that of the values."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


class _Rule:
    """Who sees whom, and how logits come about."""

    def __init__(
        self, masks: PackedMasks, scaling: float, window: int | None, softcap: float | None, dtype: torch.dtype
    ) -> None:
        self.masks, self.scaling, self.window, self.softcap, self.dtype = masks, scaling, window, softcap, dtype

    def probabilities(self, q_CNE: Tensor, k_CSE: Tensor, batch: SegmentBatch) -> tuple[Tensor, Tensor | None]:
        """(probabilities_CNS, derivative of the logits' cap or None), in the type that products run in."""
        raw_CNS = torch.bmm(q_CNE, k_CSE.transpose(1, 2))
        # Sums of two types take several times longer than those of one.
        mask_BQS = batch.mask(self.window, raw_CNS.dtype if self.softcap is None else torch.float32)
        mask_B1Q1S = mask_BQS[:, None, :, None]
        rows, (segments, own, seen) = raw_CNS.shape[1] // mask_BQS.shape[1], mask_BQS.shape
        raw_BGQRS = raw_CNS.view(segments, -1, own, rows, seen)
        if self.softcap is None:
            torch.add(mask_B1Q1S, raw_BGQRS, alpha=self.scaling, out=raw_BGQRS)
            return torch.softmax(raw_CNS, dim=-1), None
        bent = torch.tanh(raw_BGQRS.float() * (self.scaling / self.softcap))
        logits = torch.add(mask_B1Q1S, bent, alpha=self.softcap)
        slope = (1 - bent.square()).view(raw_CNS.shape)
        return torch.softmax(logits, dim=-1).view(raw_CNS.shape).to(self.dtype), slope

    def output(self, q_CQRE: Tensor, k_CSE: Tensor, v_CSE: Tensor, batch: SegmentBatch) -> Tensor:
        """What the segments' tokens get, o_CQRE."""
        if self.dtype == torch.float32 or self.softcap is not None:
            probability, _ = self.probabilities(q_CQRE.flatten(1, 2), k_CSE, batch)
            return torch.bmm(probability, v_CSE).view(q_CQRE.shape)
        q_CRQE = q_CQRE.transpose(1, 2)
        k_CRSE, v_CRSE = (whole[:, None].expand(-1, q_CRQE.shape[1], -1, -1) for whole in (k_CSE, v_CSE))
        if len(batch.segments) == 1:
            (segment,) = batch.segments
            o_CRQE = fused_attention(q_CRQE, k_CRSE, v_CRSE, self.masks, segment, self.scaling, self.window)
        else:
            mask_BQS = batch.mask(self.window, q_CRQE.dtype)
            mask_C1QS = mask_BQS.repeat_interleave(len(q_CQRE) // len(mask_BQS), dim=0)[:, None]
            o_CRQE = F.scaled_dot_product_attention(q_CRQE, k_CRSE, v_CRSE, attn_mask=mask_C1QS, scale=self.scaling)
        return o_CRQE.transpose(1, 2)


class _SegmentAttention(torch.autograd.Function):
    """All segments of one layer."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
        heads, groups, size = query.shape[1], key.shape[1], query.shape[3]
        with torch.autocast(query.device.type, enabled=False):
            # In the type that they are used in: under autocast plain rotary positions leave them twice as wide.
            q_TGRE = query[0].to(rule.dtype).transpose(0, 1).unflatten(1, (groups, -1))
            k_TGE, v_TGE = (one[0].to(rule.dtype).transpose(0, 1) for one in (key, value))
            q, k, v = padded(q_TGRE), padded(k_TGE), padded(v_TGE)
            batches = batches_of(rule.masks, groups, heads, rule.dtype)
            parts = []
            for batch in batches:
                q_CQRE = taken(q, batch.own_CQ).unflatten(2, (-1, size))
                found = rule.output(q_CQRE, taken(k, batch.seen_CS), taken(v, batch.seen_CS), batch)
                parts.append(found.flatten(2))
            out = batches.together(parts)
        ctx.rule, ctx.types, ctx.groups, ctx.size = rule, (query.dtype, key.dtype, value.dtype), groups, size
        ctx.save_for_backward(q, k, v)
        return out.view(1, -1, heads, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        rule: _Rule = ctx.rule
        groups: int = ctx.groups
        batches = batches_of(rule.masks, groups, grad.shape[2], rule.dtype)
        dq_parts, dk_parts, dv_parts = [], [], []
        with torch.autocast(grad.device.type, enabled=False):
            do = padded(grad.reshape(grad.shape[1], groups, -1, ctx.size).to(rule.dtype))
            for batch in batches:
                q_CNE, do_CNE = (taken(one, batch.own_CQ).view(len(batch.own_CQ), -1, ctx.size) for one in (q, do))
                k_CSE, v_CSE = taken(k, batch.seen_CS), taken(v, batch.seen_CS)
                probability_CNS, slope = rule.probabilities(q_CNE, k_CSE, batch)
                dv_parts.append(torch.bmm(probability_CNS.transpose(1, 2), do_CNE))
                d_probability_CNS = torch.bmm(do_CNE, v_CSE.transpose(1, 2))
                # One pass over the logits, in float32 within.
                d_raw_CNS = torch._softmax_backward_data(d_probability_CNS, probability_CNS, -1, rule.dtype)
                d_raw_CNS = d_raw_CNS if slope is None else d_raw_CNS.mul_(slope)
                dq_parts.append(torch.bmm(d_raw_CNS, k_CSE).view(*batch.own_CQ.shape, -1))
                dk_parts.append(torch.bmm(d_raw_CNS.transpose(1, 2), q_CNE))
            tokens, heads = grad.shape[1:3]
            dq = batches.together(dq_parts).view(tokens, heads, -1).float().mul_(rule.scaling)
            dk = batches.summed(dk_parts).mul_(rule.scaling).view(tokens, -1, ctx.size)
            dv = batches.summed(dv_parts).view(tokens, -1, ctx.size)
            dq, dk, dv = (one.transpose(0, 1)[None].to(kind) for one, kind in zip((dq, dk, dv), ctx.types, strict=True))
        return dq, dk, dv, None
