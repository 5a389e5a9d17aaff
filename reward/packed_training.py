"""Attention over a packed row of conversations with a gradient, for training.
What it is: the attention of `reward.packed_attention`, forward and backward, as one autograd function for all segments
of a layer, which the policy's trainer (`gpo.training.segment_attention`) uses too. Probabilities are computed again in
the backward pass, so that memory grows with the tokens and not with their square. What it is not: it forms no batches
and computes no loss.

The backward pass goes step by step ("eager"), because that of the fused kernels is slow for short rows on a CPU; the
forward pass is theirs in half precision, where it takes half the time, and step by step in float32, where that is
nearly as fast and is what the backward pass computes again. One function for all segments, because slicing under
autograd would fill a tensor of the whole row with zeros for every segment. Under autocast the products run in its type;
logits and probabilities are float32 always.

Shape suffixes: T packed tokens, G key heads, R query heads a key head, Q a segment's tokens, S tokens it sees, E head
size, N = Q * R.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from reward.packed_attention import PackedMasks, fused_attention, seen_part
from reward.packing import PackedRows, Segment

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

    def probabilities(self, q_GNE: Tensor, k_GSE: Tensor, segment: Segment) -> tuple[Tensor, Tensor | None]:
        """(float32 probabilities, derivative of the logits' cap or None), N = Q * R rows a key head."""
        mask_QS = self.masks.mask(segment, self.window)
        raw_GNS = torch.bmm(q_GNE, k_GSE.transpose(1, 2))
        raw_GQRS = raw_GNS.view(len(raw_GNS), len(mask_QS), -1, mask_QS.shape[1])
        slope = None
        if self.softcap is None:
            # Cast first: sums of two types take several times longer.
            logits = raw_GQRS.float()
            torch.add(mask_QS[:, None], logits, alpha=self.scaling, out=logits)
        else:
            bent = torch.tanh(raw_GQRS.float() * (self.scaling / self.softcap))
            logits = torch.add(mask_QS[:, None], bent, alpha=self.softcap)
            slope = (1 - bent.square()).view(raw_GNS.shape)
        return torch.softmax(logits, dim=-1).view(raw_GNS.shape), slope

    def output(self, q_GQRE: Tensor, k_GSE: Tensor, v_GSE: Tensor, segment: Segment) -> Tensor:
        """What the segment's tokens get, o_QGRE."""
        if self.dtype == torch.float32 or self.softcap is not None:
            probability, _ = self.probabilities(q_GQRE.flatten(1, 2), k_GSE, segment)
            return torch.bmm(probability.to(self.dtype), v_GSE).view(q_GQRE.shape).transpose(0, 1)
        q_GRQE = q_GQRE.transpose(1, 2)
        k_GRSE, v_GRSE = (tensor[:, None].expand(-1, q_GRQE.shape[1], -1, -1) for tensor in (k_GSE, v_GSE))
        o_GRQE = fused_attention(q_GRQE, k_GRSE, v_GRSE, self.masks, segment, self.scaling, self.window)
        return o_GRQE.permute(2, 0, 1, 3)


class _SegmentAttention(torch.autograd.Function):
    """All segments of one layer."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            q_GTRE, k_GTE, v_GTE = _by_key_head(query, key, value, rule.dtype)
            out_TGRE = q_GTRE.new_empty(q_GTRE.shape[1], q_GTRE.shape[0], *q_GTRE.shape[2:])
            for segment in rule.masks.segments:
                own = slice(segment.start, segment.stop)
                k_GSE, v_GSE = seen_part(k_GTE, segment), seen_part(v_GTE, segment)
                out_TGRE[own] = rule.output(q_GTRE[:, own], k_GSE, v_GSE, segment)
        ctx.rule, ctx.types = rule, (query.dtype, key.dtype, value.dtype)
        # In the type that they are used in: under autocast rotary positions leave queries and keys twice as wide.
        ctx.save_for_backward(q_GTRE, k_GTE, v_GTE, out_TGRE)
        return out_TGRE.view(1, query.shape[2], query.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_GTRE, k_GTE, v_GTE, out_TGRE = ctx.saved_tensors
        rule: _Rule = ctx.rule
        with torch.autocast(grad.device.type, enabled=False):
            grad_TGRE = grad.view(out_TGRE.shape).to(rule.dtype)
            inner_GTR1 = (grad_TGRE.float() * out_TGRE.float()).sum(-1, keepdim=True).transpose(0, 1).contiguous()
            do_GTRE = grad_TGRE.transpose(0, 1).contiguous()
            # A prompt is seen by several segments, whose gradients add up.
            dq_GTRE = torch.empty(q_GTRE.shape, dtype=torch.float32, device=grad.device)
            dk_GTE, dv_GTE = (torch.zeros(k_GTE.shape, dtype=torch.float32, device=grad.device) for _ in "kv")
            for segment in rule.masks.segments:
                own = slice(segment.start, segment.stop)
                q_GNE, do_GNE, inner_GN1, dq_GNE = (
                    whole[:, own].flatten(1, 2) for whole in (q_GTRE, do_GTRE, inner_GTR1, dq_GTRE)
                )
                k_GSE, v_GSE = seen_part(k_GTE, segment), seen_part(v_GTE, segment)
                probability, slope = rule.probabilities(q_GNE, k_GSE, segment)
                _add_seen(dv_GTE, segment, torch.bmm(probability.to(rule.dtype).transpose(1, 2), do_GNE))
                d_probability = torch.bmm(do_GNE, v_GSE.transpose(1, 2)).float()
                d_logits = d_probability.sub_(inner_GN1).mul_(probability)
                d_logits = d_logits if slope is None else d_logits.mul_(slope)
                d_raw_GNS = d_logits.to(rule.dtype)
                dq_GNE.copy_(torch.bmm(d_raw_GNS, k_GSE))
                _add_seen(dk_GTE, segment, torch.bmm(d_raw_GNS.transpose(1, 2), q_GNE), rule.scaling)
        q_type, k_type, v_type = ctx.types
        dq = dq_GTRE.mul_(rule.scaling).transpose(1, 2).flatten(0, 1)
        return dq[None].to(q_type), dk_GTE[None].to(k_type), dv_GTE[None].to(v_type), None


def _by_key_head(query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(q_GTRE, k_GTE, v_GTE); a segment's rows of q lie one behind the other, so that taking them copies nothing."""
    q_GTRE = query[0].to(dtype).unflatten(0, (key.shape[1], -1)).transpose(1, 2).contiguous()
    return q_GTRE, key[0].to(dtype), value[0].to(dtype)


def _add_seen(total_GTE: Tensor, segment: Segment, part_GSE: Tensor, factor: float = 1.0) -> None:
    done = 0
    for start, stop in segment.seen:
        total_GTE[:, start:stop].add_(part_GSE[:, done : done + stop - start], alpha=factor)
        done += stop - start
