"""Layouts: the same log-probabilities and gradients however answers lie in memory, and how many fit into a pass.

Run: python -m pytest tests/gpo/training/test_layout.py
"""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpo.training.layout import Layout, computed_tokens, lay_out, micro_batches
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.segment_attention import packing_obstacle, segment_attention, segments_of
from reward.packed_attention import MODEL_TYPES
from tests.tiny import make_tiny_model

torch.set_num_threads(1)
LAYOUTS: list[Layout] = ["padded", "packed", "shared"]


def draw_rows(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Three prompts with 1, 2 and 4 answers, two of which are the same."""
    draw = random.Random(seed)

    def ids(longest: int) -> list[int]:
        return [draw.randrange(250) for _ in range(draw.randrange(1, longest))]

    rows = []
    for count in (1, 2, 4):
        prompt = ids(20)
        rows += [(prompt, ids(30)) for _ in range(count)]
    return [*rows, rows[-1]]


def logps_and_gradients(model: Any, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    part = lay_out(draw_rows(), layout)
    lengths, extra = part.pop("lengths"), segments_of(part)
    part.pop("segments", None)
    if layout == "padded":
        logps = answer_logps(model(**part), lengths)
        logps.square().mean().backward()
    else:
        with segment_attention(model.config):
            logps = answer_logps(model(**part, **extra), lengths)
            logps.square().mean().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "gemma2": {"sliding_window": 7},
}
CASES = [
    *(pytest.param(model_type, {}, id=model_type) for model_type in MODEL_TYPES),
    *(pytest.param(model_type, changes, id=f"{model_type}-window") for model_type, changes in WINDOWED.items()),
]


@pytest.mark.parametrize(("model_type", "changes"), CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layout_gives_the_same_log_probabilities_and_gradients(
    model_type: str, changes: dict[str, Any], checkpointing: bool
) -> None:
    model = make_tiny_model(model_type, **changes)
    if model_type == "gemma2":
        model.set_attn_implementation("eager")
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    add_log_prob_head(model)
    expected, gradients = logps_and_gradients(model, "padded")
    for layout in LAYOUTS[1:]:
        found, others = logps_and_gradients(model, layout)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (others[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), (layout, name)


def test_an_answer_is_not_seen_by_the_other_answers_of_its_prompt() -> None:
    model = make_tiny_model()
    add_log_prob_head(model)
    rows = [([5, 6, 7], [10, 11, 12]), ([5, 6, 7], [20, 21])]
    changed = [([5, 6, 7], [90, 91, 92]), ([5, 6, 7], [20, 21])]
    found = []
    for one in (rows, changed):
        part = lay_out(one, "shared")
        lengths, extra, _ = part.pop("lengths"), segments_of(part), part.pop("segments")
        with torch.no_grad(), segment_attention(model.config):
            found.append(answer_logps(model(**part, **extra), lengths))
    assert found[0][1] == found[1][1] and found[0][0] != found[1][0]


def test_a_prompt_is_laid_out_once_for_neighbouring_answers_and_again_where_it_comes_back() -> None:
    rows = [([1, 2], [3]), ([1, 2], [4, 5]), ([9], [8]), ([1, 2], [6])]
    part = lay_out(rows, "shared")
    assert part["input_ids"].tolist() == [[1, 2, 3, 4, 5, 9, 8, 1, 2, 6]]
    assert part["position_ids"].tolist() == [[0, 1, 2, 2, 3, 0, 1, 0, 1, 2]]
    assert part["answer_at"].tolist() == [1, 1, 3, 5, 8] and part["answer_ids"].tolist() == [3, 4, 5, 8, 6]
    assert part["lengths"] == [1, 2, 1, 1]


def test_a_padded_part_marks_padding_and_predicts_from_the_position_before() -> None:
    part = lay_out([([5, 6], [7]), ([8], [9, 10, 11])], "padded", pad_id=99)
    assert part["input_ids"].tolist() == [[5, 6, 7, 99], [8, 9, 10, 11]]
    assert part["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert part["answer_at"].tolist() == [1, 4, 5, 6] and part["answer_ids"].tolist() == [7, 9, 10, 11]


@pytest.mark.parametrize("row", [([], [1]), ([1], [])])
def test_a_row_without_prompt_or_answer_is_refused(row: tuple[list[int], list[int]]) -> None:
    with pytest.raises(ValueError, match="row 1 has . prompt and . answer tokens; expected at least one of each"):
        lay_out([([1], [2]), row], "shared")


def test_the_context_leaves_the_models_own_attention_behind() -> None:
    model = make_tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError), segment_attention(model.config):
        assert model.config._attn_implementation != before
        raise RuntimeError
    assert model.config._attn_implementation == before


def test_models_that_were_not_compared_are_named() -> None:
    assert packing_obstacle(make_tiny_model().config) is None
    assert "gpt_neox models are not among those" in str(packing_obstacle(make_tiny_model("gpt_neox").config))


groups_of_sizes = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), min_size=1, max_size=5)), min_size=1
)


@given(groups_of_sizes, st.sampled_from(LAYOUTS), st.integers(10, 200), st.booleans())
def test_micro_batches_hold_every_row_once_within_the_budget_where_that_is_possible(
    prompts: list[tuple[int, list[int]]], layout: Layout, tokens: int, divide: bool
) -> None:
    sizes, groups, group_of = [], [], {}
    for number, (prompt, answers) in enumerate(prompts):
        groups.append(list(range(len(sizes), len(sizes) + len(answers))))
        group_of |= dict.fromkeys(groups[-1], number)
        sizes += [(prompt, answer) for answer in answers]
    batches = micro_batches(groups, sizes, layout, tokens, divide)
    assert sorted(row for batch in batches for row in batch) == list(range(len(sizes)))
    for batch in batches:
        if layout == "padded":
            cost = len(batch) * max(sum(sizes[row]) for row in batch)
        else:
            held: dict[int, list[int]] = {}
            for row in batch:
                held.setdefault(group_of[row], []).append(sizes[row][1])
            cost = sum(computed_tokens(prompts[group][0], answers, layout) for group, answers in held.items())
        assert cost <= tokens or len({group_of[row] for row in batch}) == 1
        if divide:
            assert cost <= tokens or len(batch) == 1
        else:
            assert all(
                sum(group_of[row] == group for row in batch) == len(groups[group]) for group in map(group_of.get, batch)
            )
