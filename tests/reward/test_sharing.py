"""Beginnings that conversations share are computed once, and nothing else changes.

Run: python -m pytest tests/reward/test_sharing.py
Written for transformers 5.19, whose private names reward/packed_attention.py uses. When a test fails after an
upgrade, read what its docstring lists, and raise the version here.
"""

import itertools
import logging
import random
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from reward.backend_transformers import MAX_PADDING, HiddenStates, TransformersBackend, length_batches
from reward.encoding import EncodedConversation
from reward.model import GeneralPreferenceModel, pad_rows
from reward.packed_attention import MODEL_TYPES, packing_obstacle
from reward.packing import MIN_SHARED, Row, common_length, pack_rows, packed_batches
from reward.settings import RewardSettings
from tests.tiny import make_tiny_model

torch.set_num_threads(1)
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "gemma2": {"sliding_window": 20},
}
CASES = [
    *(pytest.param(model_type, {}, id=model_type) for model_type in MODEL_TYPES),
    *(pytest.param(model_type, changes, id=f"{model_type}-window") for model_type, changes in WINDOWED.items()),
    pytest.param("gpt_neox", {"num_key_value_heads": 2}, id="gpt_neox-not-shared"),
]


def conversation(prompt: list[int], answer: list[int], prompt_end: int | None = None) -> EncodedConversation:
    end = len(prompt) - 1 if prompt_end is None else prompt_end
    return EncodedConversation([*prompt, *answer], end, len(prompt), False, True)


def conversations(seed: int = 0) -> list[EncodedConversation]:
    """Prompts of 3 to 60 ids behind one long system message, answers of 0 to 70 ids, repeats, nested rows."""
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(250) for _ in range(length)]

    system = ids(25)
    rows = []
    for length in (3, 20, 40, 60):
        prompt = [*system, *ids(length)]
        answers = [ids(draw.randrange(1, 70)) for _ in range(4)]
        answers += [[*answers[0], *ids(30)], answers[1], []]
        rows += [conversation(prompt, answer) for answer in answers]
    # The gate is read inside the system message, or at the end of an answer that fills the row.
    rows += [conversation(rows[0].input_ids, [], 10), conversation([7], []), conversation(ids(90), ids(5), 2)]
    draw.shuffle(rows)
    return rows


def tiny(model_type: str, **changes: Any) -> GeneralPreferenceModel:
    backbone = make_tiny_model(model_type, **changes)
    if model_type == "gemma2":
        backbone.set_attn_implementation("eager")
    return GeneralPreferenceModel.from_backbone(backbone, RewardSettings.published(6, True))


@torch.no_grad()
def one_by_one(model: GeneralPreferenceModel, rows: list[EncodedConversation]) -> HiddenStates:
    found = [model.hidden_states(*pad_rows([row])) for row in rows]
    return HiddenStates(*(torch.cat(states) for states in zip(*found, strict=True)))


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_states_equal_those_of_each_row_alone(model_type: str, changes: dict[str, Any]) -> None:
    model, rows = tiny(model_type, **changes), conversations()
    expected = one_by_one(model, rows)
    before = model.backbone.config._attn_implementation
    for budget in (40, 400, 100_000):
        found = TransformersBackend(model, budget).hidden_states(rows)
        for states, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
    assert model.backbone.config._attn_implementation == before


def test_a_window_is_noticed_by_the_rows_of_these_tests() -> None:
    """Otherwise the windowed cases above would prove nothing."""
    for model_type, changes in WINDOWED.items():
        wide, narrow = (one_by_one(tiny(model_type, **one), conversations()) for one in ({}, changes))
        assert float((wide.answer_NH - narrow.answer_NH).abs().max()) > 0.1, model_type


def test_bfloat16_states_differ_from_the_plain_ones_by_rounding_only() -> None:
    rows, wide = conversations(), tiny("llama")
    model = tiny("llama")
    model.backbone.to(torch.bfloat16)
    found = TransformersBackend(model).hidden_states(rows).answer_NH
    plain, exact = one_by_one(model, rows).answer_NH, one_by_one(wide, rows).answer_NH
    assert found.dtype == torch.bfloat16
    # No further from float32 than the plain pass is, within a quarter.
    assert float((found - exact).norm()) < 1.25 * float((plain - exact).norm())


def test_a_prompt_is_computed_once_for_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    computed: list[int] = []
    original = model.backbone.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        computed.append(kwargs["input_ids"].numel())
        return original(*args, **kwargs)

    monkeypatch.setattr(model.backbone, "forward", forward)
    prompts = [[number] * 100 for number in range(3)]
    rows = [conversation(prompt, [10 + place] * 30) for prompt in prompts for place in range(8)]
    backend = TransformersBackend(model)
    backend.hidden_states(rows)
    assert computed == [3 * (100 + 8 * 30)]
    computed.clear()
    progress: list[tuple[int, int]] = []
    TransformersBackend(model, 460).hidden_states([*rows, *rows], lambda done, total: progress.append((done, total)))
    assert computed == [340, 340, 340]
    assert progress == [(1040, 3120), (2080, 3120), (3120, 3120)]


def unpacked(rows: list[Row]) -> tuple[list[Row], int]:
    """The conversations as a packed row tells them, and how many tokens it computes."""
    packed = pack_rows(rows)
    found = []
    for place, row in enumerate(rows):
        index = [packed.index(place, position) for position in range(len(row))]
        assert [packed.position_ids[at] for at in index] == list(range(len(row)))
        found.append(tuple(packed.input_ids[at] for at in index))
    for segment in packed.segments:
        assert sum(stop - start for start, stop in segment.seen) == segment.position + segment.stop - segment.start
        assert segment.seen[-1][1] == segment.stop
    return found, len(packed.input_ids)


def random_rows(seed: int) -> list[Row]:
    """Few different ids, so that rows share beginnings of every length, and repeats of whole stretches."""
    draw = random.Random(seed)
    rows: set[Row] = {()}
    for _ in range(60):
        start = draw.choice(sorted(rows))
        kept = start[: draw.randrange(len(start) + 1)]
        rows.add((*kept, *(draw.randrange(3) for _ in range(draw.randrange(1, 40)))))
    return sorted(rows - {()})


@pytest.mark.parametrize("seed", range(20))
def test_packing_keeps_every_conversation_and_batches_keep_the_budget(seed: int) -> None:
    rows = random_rows(seed)
    found, computed = unpacked(rows)
    assert found == rows
    least = len(rows[0]) + sum(len(row) - common_length(*pair) for pair in itertools.pairwise(rows) for row in pair[1:])
    assert least <= computed <= least + MIN_SHARED * len(rows)
    for budget in (1, 30, 100, 10_000):
        batches = list(packed_batches(rows, budget))
        assert [place for batch in batches for place in batch] == list(range(len(rows)))
        for batch in batches:
            assert len(batch) == 1 or unpacked([rows[place] for place in batch])[1] <= budget


def test_short_common_beginnings_stay_with_their_rows() -> None:
    short, long = (1,) * (MIN_SHARED - 1), (1,) * MIN_SHARED
    assert len(pack_rows([(*short, 2), (*short, 3)]).segments) == 2
    packed = pack_rows([(*long, 2), (*long, 3)])
    assert [(one.start, one.stop, one.position) for one in packed.segments] == [(0, 16, 0), (16, 17, 16), (17, 18, 16)]
    assert [one.seen for one in packed.segments] == [((0, 16),), ((0, 17),), ((0, 16), (17, 18))]
    assert pack_rows([]).input_ids == [] and list(packed_batches([], 10)) == []


def test_thousands_of_nested_rows_do_not_exhaust_the_stack() -> None:
    rows = [(5,) * length for length in range(1, 2000)]
    packed = pack_rows(rows)
    assert all(packed.position_ids[packed.index(place, len(row) - 1)] == len(row) - 1 for place, row in enumerate(rows))


def test_a_batch_is_cut_between_prompts_when_it_stays_half_full() -> None:
    rows = sorted((prompt,) * 50 + (answer,) * 50 for prompt in range(4) for answer in range(10, 14))
    # A prompt and its answers compute 250 tokens; 600 hold two and, cut anywhere, more.
    assert [len(batch) for batch in packed_batches(rows, 600)] == [8, 8]
    assert [len(batch) for batch in packed_batches(rows, 170)] == [2] * 8


def test_plain_batches_are_at_most_an_eighth_or_so_padding() -> None:
    draw = random.Random(3)
    lengths = [int(draw.lognormvariate(5, 0.8)) + 1 for _ in range(500)]
    batches = list(length_batches(lengths, 8192))
    padded = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.12 < MAX_PADDING
    assert all(len(batch) == 1 or sum(lengths[place] for place in batch) <= 8192 for batch in batches)


def test_models_that_cannot_share_exactly_say_why_once(caplog: pytest.LogCaptureFixture) -> None:
    assert packing_obstacle(make_tiny_model("llama").config) is None
    mamba = packing_obstacle(AutoConfig.for_model("mamba"))
    assert mamba is not None and mamba.startswith("mamba models")
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model = tiny("llama", rope_parameters=dynamic)
    with caplog.at_level(logging.WARNING):
        backend = TransformersBackend(model)
        backend.hidden_states(conversations()), backend.hidden_states(conversations())
    assert caplog.text.count("a prompt is computed once for each of its answers, not once: ") == 1
    assert "rotary positions of type 'dynamic'" in caplog.text
    looks_ahead = packing_obstacle(AutoConfig.for_model("gemma2", use_bidirectional_attention=True))
    assert looks_ahead is not None and "looks ahead" in looks_ahead


def test_the_private_names_are_those_of_transformers_5_19() -> None:
    """Look at `AttentionInterface` and `_preprocess_mask_arguments` in transformers and at packed_attention.py."""
    assert transformers.__version__.startswith("5.19."), transformers.__version__
    model = make_tiny_model("llama")
    seen: dict[str, Any] = {}

    def spy(module: Any, query: torch.Tensor, key: Any, value: Any, mask: Any, **keywords: Any) -> tuple[Any, None]:
        seen.update(keywords, mask=mask, shape=query.shape)
        return query.transpose(1, 2), None

    transformers.AttentionInterface.register("gpo_spy", spy)
    model.config._attn_implementation = "gpo_spy"
    model.model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=False, packed_masks="handed on")
    assert seen["packed_masks"] == "handed on" and seen["mask"] is None
    assert seen["shape"] == (1, 2, 5, 32) and seen["scaling"] == pytest.approx(32**-0.5)
