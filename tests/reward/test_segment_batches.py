"""Segments that attention computes together: the ways into a batch and back against loops over tokens.

Run: python -m pytest tests/reward/test_segment_batches.py
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reward.packed_attention import PackedMasks
from reward.packed_training import training_attention
from reward.packing import Segment, pack_rows
from reward.segment_batches import MOST_ELEMENTS, SegmentBatches, padded, taken

GROUPS, SIZE = 2, 4
prompts = st.lists(st.integers(17, 30), min_size=1, max_size=3)
answers = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def segments_of(lengths: list[int], answered: list[int]) -> list[Segment]:
    """Each prompt with the same answers' lengths, laid out with the prompts shared."""
    rows = [
        (*[100 + number] * length, 200 + place, *[place] * more)
        for number, length in enumerate(lengths)
        for place, more in enumerate(answered)
    ]
    return pack_rows(sorted(rows)).segments


def tokens_seen(segment: Segment) -> list[int]:
    return [token for start, stop in segment.seen for token in range(start, stop)]


@given(prompts, answers)
def test_every_token_is_in_one_batch_and_comes_back_where_it_was(lengths: list[int], answered: list[int]) -> None:
    masks = PackedMasks(segments_of(lengths, answered), torch.float32, torch.device("cpu"))
    batches = SegmentBatches(masks, GROUPS, MOST_ELEMENTS)
    whole_TGE = torch.randn(masks.tokens, GROUPS, SIZE)
    rows = padded(whole_TGE)
    found = batches.together([taken(rows, batch.own_CQ) for batch in batches])
    assert torch.equal(found.view(whole_TGE.shape), whole_TGE)


@given(prompts, answers)
def test_what_goes_to_seen_tokens_is_added_up(lengths: list[int], answered: list[int]) -> None:
    masks = PackedMasks(segments_of(lengths, answered), torch.float32, torch.device("cpu"))
    batches = SegmentBatches(masks, GROUPS, MOST_ELEMENTS)
    parts = [torch.randn(*batch.seen_CS.shape, SIZE) for batch in batches]
    expected_TGE = torch.zeros(masks.tokens, GROUPS, SIZE)
    for batch, part in zip(batches, parts, strict=True):
        part_BGSE = part.view(-1, GROUPS, *part.shape[1:])
        for place, segment in enumerate(batch.segments):
            for seen, token in enumerate(tokens_seen(segment)):
                expected_TGE[token] += part_BGSE[place, :, seen]
    assert torch.allclose(batches.summed(parts).view(expected_TGE.shape), expected_TGE, atol=1e-5)


@given(prompts, answers, st.sampled_from([None, 5]))
def test_masks_let_each_token_see_its_conversation_up_to_itself(
    lengths: list[int], answered: list[int], window: int | None
) -> None:
    masks = PackedMasks(segments_of(lengths, answered), torch.float32, torch.device("cpu"))
    for batch in SegmentBatches(masks, GROUPS, MOST_ELEMENTS):
        mask_BQS = batch.mask(window)
        for place, segment in enumerate(batch.segments):
            for own in range(segment.stop - segment.start):
                at = segment.position + own
                first = 0 if window is None else max(0, at - window + 1)
                looks = torch.isfinite(mask_BQS[place, own])
                assert looks.sum() == at + 1 - first and looks[first : at + 1].all()


def attended(masks: PackedMasks, inputs: list[Tensor], **rule: float | int) -> list[Tensor]:
    """Output and gradients of the attention."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    (output, _) = training_attention(
        torch.nn.Identity(), inputs[0], inputs[1], inputs[2], None, scaling=0.5, packed_masks=masks, **rule
    )
    weights = torch.linspace(-1, 2, output.numel()).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


@given(prompts, answers, st.sampled_from([{}, {"sliding_window": 5}, {"softcap": 2.0}]))
def test_segments_together_give_what_each_gives_alone(
    lengths: list[int], answered: list[int], rule: dict[str, float | int]
) -> None:
    segments = segments_of(lengths, answered)
    alone, together = (PackedMasks(segments, torch.float32, torch.device("cpu")) for _ in "ab")
    together.batches = SegmentBatches(together, GROUPS, MOST_ELEMENTS)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, alone.tokens, SIZE) for heads in (3 * GROUPS, GROUPS, GROUPS)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    for one, other in zip(attended(alone, inputs, **rule), attended(together, inputs, **rule), strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)
    assert len(alone.batches) == len(segments)


def test_short_segments_come_together_and_long_ones_do_not() -> None:
    short = segments_of([20, 20], [6, 6, 6, 6])
    masks = PackedMasks(short, torch.float32, torch.device("cpu"))
    assert len(SegmentBatches(masks, GROUPS, MOST_ELEMENTS)) <= 3 < len(short)
    assert len(SegmentBatches(masks, GROUPS, 300)) == len(short)
