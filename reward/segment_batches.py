"""Segments of a packed row that attention computes together, for training: short ones padded to a common size.
What it is: which segments form a batch, where its tensors lie in the packed row, and the ways there and back as one
gather each. A segment of a hundred tokens is done before the next call has begun, so that calls would take most of the
time; a batch that outgrows the cache of a core is slow too. What it is not: it computes no attention.

Shape suffixes: T packed tokens, G key heads, B segments of a batch, C = B * G, Q tokens of the longest, S tokens that
are seen by the one that sees most, X anything. A place is a row of a tensor (T * G + 1)X, whose last row is padding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reward.packed_attention import PackedMasks
from reward.packing import Segment, Span

MOST_ELEMENTS = 1 << 20
"""Attention logits a batch, over all heads."""
MOST_PADDING = 1.5
"""Logits of a batch over those of its segments."""


class SegmentBatch:
    """Some segments, by where their own tokens and those that they see lie: own_CQ and seen_CS."""

    def __init__(self, segments: Sequence[Segment], masks: PackedMasks, groups: int) -> None:
        self.segments = segments
        self._masks, self._groups = masks, groups
        self._kept: dict[tuple[tuple[int | None, ...], torch.dtype], Tensor] = {}
        self.own_CQ = self._places([((one.start, one.stop),) for one in segments])
        self.seen_CS = self._places([one.seen for one in segments])

    def _places(self, spans: Sequence[Sequence[Span]]) -> Tensor:
        tokens = [[token for start, stop in of_one for token in range(start, stop)] for of_one in spans]
        longest = max(map(len, tokens))
        padding = self._masks.tokens
        token_BL = torch.tensor([[*of_one, *[padding] * (longest - len(of_one))] for of_one in tokens])
        place_BGL = token_BL[:, None] * self._groups + torch.arange(self._groups)[:, None]
        return place_BGL.clamp_(max=padding * self._groups).flatten(0, 1).to(self._masks.device)

    def mask(self, window: int | None, dtype: torch.dtype | None = None) -> Tensor:
        """mask_BQS: 0 where a token may look, -inf elsewhere; what only pads looks at the first token.

        That of one segment alone is a view: a long one's is large.
        """
        parts = [self._masks.mask(segment, window, dtype) for segment in self.segments]
        if len(parts) == 1:
            return parts[0][None]
        kind = (tuple(self._masks.window(segment, window) for segment in self.segments), parts[0].dtype)
        if kind not in self._kept:
            shape = (len(parts), self.own_CQ.shape[1], self.seen_CS.shape[1])
            mask_BQS = parts[0].new_full(shape, float("-inf"))
            mask_BQS[:, :, 0] = 0.0
            for whole, part in zip(mask_BQS, parts, strict=True):
                whole[: part.shape[0], : part.shape[1]] = part
            self._kept[kind] = mask_BQS
        return self._kept[kind]


class SegmentBatches(list[SegmentBatch]):
    """All segments of a packed row."""

    def __init__(self, masks: PackedMasks, groups: int, most_elements: int) -> None:
        super().__init__(SegmentBatch(group, masks, groups) for group in _grouped(masks.segments, most_elements))
        rows = masks.tokens * groups
        own, seen = (torch.cat([place.flatten() for place in places]) for places in zip(*self._all(), strict=True))
        where = torch.empty(rows + 1, dtype=torch.long, device=own.device)
        where[own] = torch.arange(len(own), device=own.device)
        self._own = where[:-1]
        counts = torch.bincount(seen, minlength=rows + 1)
        # Padding comes last and is left out.
        self._seen = torch.sort(seen, stable=True).indices[: len(seen) - int(counts[-1])]
        self._ends = torch.cumsum(counts[:-1], 0) - counts[:-1]

    def _all(self) -> list[tuple[Tensor, Tensor]]:
        return [(batch.own_CQ, batch.seen_CS) for batch in self]

    def together(self, parts_CQX: Sequence[Tensor]) -> Tensor:
        """whole_(T*G)X of what the batches' own tokens got."""
        return torch.cat([part.flatten(0, 1) for part in parts_CQX]).index_select(0, self._own)

    def summed(self, parts_CSX: Sequence[Tensor]) -> Tensor:
        """whole_(T*G)X in float32 of what goes to seen tokens: a prompt is seen by several segments."""
        whole = torch.cat([part.flatten(0, 1) for part in parts_CSX]).float()
        return F.embedding_bag(self._seen, whole, self._ends, mode="sum")


def batches_of(masks: PackedMasks, groups: int, heads: int, dtype: torch.dtype) -> SegmentBatches:
    """Kept with the masks, which all layers share.

    In float32 each segment is alone: its numbers are then the same to the bit in whatever company it comes.
    """
    if masks.batches is None:
        masks.batches = SegmentBatches(masks, groups, 0 if dtype == torch.float32 else MOST_ELEMENTS // heads)
    return masks.batches


def padded(whole_TGX: Tensor) -> Tensor:
    """A copy, as rows_(T*G+1)X with padding behind."""
    rows = whole_TGX.new_empty(whole_TGX.shape[0] * whole_TGX.shape[1] + 1, whole_TGX[0, 0].numel())
    rows[:-1].view(whole_TGX.shape).copy_(whole_TGX)
    rows[-1] = 0
    return rows


def taken(rows: Tensor, places_CL: Tensor) -> Tensor:
    """part_CLX: the rows at the places."""
    return rows.index_select(0, places_CL.flatten()).view(*places_CL.shape, rows.shape[1])


def _grouped(segments: Sequence[Segment], most_elements: int) -> list[list[Segment]]:
    """Those of like size together."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda one: (_seen(one), _own(one), one.start)):
        if groups and _fits([*groups[-1], segment], most_elements):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _fits(group: Sequence[Segment], most_elements: int) -> bool:
    logits = len(group) * max(map(_own, group)) * max(map(_seen, group))
    return logits <= most_elements and logits <= MOST_PADDING * sum(_own(one) * _seen(one) for one in group)


def _own(segment: Segment) -> int:
    return segment.stop - segment.start


def _seen(segment: Segment) -> int:
    return segment.position + segment.stop - segment.start
