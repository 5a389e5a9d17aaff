"""PreferenceScorer against the published numbers, and what must not change its results."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import reward
from reward.backend_transformers import TransformersBackend, length_batches
from reward.checkpoint import read_tensors
from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.preference import preference_probability, preference_score, preference_table
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.reward import published
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
WORDS = "tide water bread date long harbour"


def save_scorer(directory: Path, settings: RewardSettings | None = None, **changes: Any) -> Path:
    base = save_tiny_model(directory / "base", **changes)
    chosen = settings or RewardSettings.published(6, True)
    GeneralPreferenceModel.from_backbone(base, chosen, seed=1).save_pretrained(directory / "reward")
    return directory / "reward"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("scorer"))


def talks(count: int) -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": WORDS[: 3 + 7 * (place % 3)]},
            {"role": "assistant", "content": WORDS[place:] * (1 + place % 4)},
        ]
        for place in range(count)
    ]


def close(found: torch.Tensor, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=tolerance)


@published.present
@pytest.mark.parametrize("case", published.cases())
def test_embeddings_gates_and_tables_agree_with_the_published_ones(case: dict[str, Any]) -> None:
    scorer = PreferenceScorer.from_pretrained(published.checkpoint(case["checkpoint"]), max_length=case["max_length"])
    if case.get("expect_template_error"):
        return
    allowed = published.load("cases.json")["tolerance_absolute"]
    found = scorer.embed(case["conversations"])
    bt = "reward" in case
    if bt:
        assert found.gate_NL is None
        close(found.v_ND[:, 0], case["reward"], allowed["reward"])
    else:
        close(found.v_ND, case["embedding"], allowed["embedding"])
    if "gate" in case:
        assert found.gate_NL is not None
        close(found.gate_NL, case["gate"], allowed["gate"])
    messages = case["conversations"]
    score_KK = scorer.table(messages[0][:-1], [one[-1]["content"] for one in messages])
    close(score_KK, case["score"], allowed["bt_score" if bt else "score"])
    close(
        score_KK / scorer.tau,
        case["score_over_tau"],
        allowed["bt_score_over_tau" if bt else "score_over_tau"],
    )
    close(preference_probability(score_KK, scorer.tau), case["prob"], allowed["prob"])
    assert torch.equal(score_KK, -score_KK.T)


@published.present
@pytest.mark.parametrize("case", [case for case in published.cases() if "prompt_hidden_row0" in case.values[0]])
def test_what_lies_before_normalising_and_softmax_agrees_with_the_published_numbers(case: dict[str, Any]) -> None:
    allowed = published.load("cases.json")["tolerance_absolute"]
    directory = published.checkpoint(case["checkpoint"])
    scorer = PreferenceScorer.from_pretrained(directory, max_length=case["max_length"], l2_normalize=False)
    close(scorer.embed(case["conversations"]).v_ND, case["embedding_unnormalized"], allowed["embedding_unnormalized"])
    states = scorer.backend.hidden_states(scorer.encoder.encode(case["conversations"]))
    assert states.prompt_NH is not None
    close(states.prompt_NH[0], case["prompt_hidden_row0"], allowed["prompt_hidden_row0"])
    if "gate_logits" in case:
        assert scorer.heads.prompt_head is not None
        logits_NL = states.prompt_NH @ scorer.heads.prompt_head.weight.T
        close(logits_NL.detach(), case["gate_logits"], allowed["gate_logits"])


@published.present
@pytest.mark.parametrize("case", [case for case in published.cases() if case.values])
def test_other_policies_agree_with_the_published_alternatives(case: dict[str, Any]) -> None:
    alternatives: tuple[tuple[str, dict[str, Any]], ...] = (
        ("alt_single_bos", {"bos_policy": "single"}),
        ("alt_gate_all_but_last_message", {"gate_prompt": "all_but_last"}),
    )
    for field, policy in alternatives:
        if field not in case:
            continue
        directory = published.checkpoint(case["checkpoint"])
        scorer = PreferenceScorer.from_pretrained(directory, max_length=case["max_length"], **policy)
        messages, expected = case["conversations"], case[field]
        close(scorer.table(messages[0][:-1], [one[-1]["content"] for one in messages]), expected["score"], 1e-5)
        if "gate" in expected:
            gate_NL = scorer.embed(messages).gate_NL
            assert gate_NL is not None
            close(gate_NL[0], torch.tensor(expected["gate"]).reshape(-1, gate_NL.shape[1])[0].tolist(), 1e-5)


def test_batch_size_order_and_repeats_change_nothing_beyond_rounding(tiny: Path) -> None:
    conversations = talks(9)
    whole = PreferenceScorer.from_pretrained(tiny).embed(conversations)
    for budget in (1, 100, 300, 100_000):
        found = PreferenceScorer.from_pretrained(tiny, tokens_per_batch=budget).embed(conversations)
        torch.testing.assert_close(found.v_ND, whole.v_ND, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.gate_NL, whole.gate_NL, rtol=0, atol=1e-5)
    order = [4, 1, 8, 0, 4, 2, 7, 3, 6, 5, 4]
    mixed = PreferenceScorer.from_pretrained(tiny).embed([conversations[place] for place in order])
    torch.testing.assert_close(mixed.v_ND, whole.v_ND[order], rtol=0, atol=1e-5)
    assert torch.equal(mixed.v_ND[0], mixed.v_ND[4]) and torch.equal(mixed.v_ND[0], mixed.v_ND[10])


def test_permuting_the_answers_permutes_the_table_and_two_answers_are_the_pair(tiny: Path) -> None:
    scorer = PreferenceScorer.from_pretrained(tiny)
    prompt = [{"role": "user", "content": "Name a sea."}]
    answers = ["The North Sea.", "Everest", "", "a sea, a sea, a sea"]
    table = scorer.table(prompt, answers)
    order = [2, 0, 3, 1]
    permuted = scorer.table(prompt, [answers[place] for place in order])
    torch.testing.assert_close(permuted, table[order][:, order], rtol=0, atol=1e-5)
    pair = scorer.table(prompt, answers[:2])
    torch.testing.assert_close(pair, table[:2, :2], rtol=0, atol=1e-5)
    found = scorer.embed([[*prompt, {"role": "assistant", "content": answer}] for answer in answers[:2]])
    assert found.gate_NL is not None
    score = preference_score(found.v_ND[:1], found.v_ND[1:], found.gate_NL[:1])
    torch.testing.assert_close(pair[0, 1], score[0], rtol=0, atol=1e-5)


def test_equal_answers_tie_exactly(tiny: Path) -> None:
    table = PreferenceScorer.from_pretrained(tiny).table([{"role": "user", "content": "q"}], ["a", "b", "a"])
    assert table[0, 2] == 0 and torch.equal(table[0], table[2]) and table[0, 1] != 0


def test_identical_rows_are_computed_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GeneralPreferenceModel.from_pretrained(tiny)
    seen: list[int] = []
    original = model.backbone.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].numel())
        return original(*args, **kwargs)

    monkeypatch.setattr(model.backbone, "forward", forward)
    one = EncodedConversation([1, 2, 3], 1, 2, False, True)
    two = EncodedConversation([1, 2, 3], 0, 1, False, True)
    states = TransformersBackend(model).hidden_states([one, two, one])
    assert seen == [3]
    assert torch.equal(states.prompt_NH[0], states.prompt_NH[2])
    assert not torch.equal(states.prompt_NH[0], states.prompt_NH[1])


def test_plain_batches_stay_within_the_budget_of_real_tokens() -> None:
    lengths = [5, 100, 7, 30, 28, 1, 12]
    batches = list(length_batches(lengths, 60))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert batches == [[1], [3, 4], [6], [2, 0], [5]]
    assert list(length_batches([30, 30, 30], 60)) == [[0, 1], [2]]
    assert list(length_batches([], 60)) == []


def test_a_bfloat16_checkpoint_gives_float32_results_and_runs_in_float32_when_asked(tmp_path: Path) -> None:
    directory = save_scorer(tmp_path, dtype=torch.bfloat16)
    stored = PreferenceScorer.from_pretrained(directory, dtype="bfloat16").embed(talks(4))
    wide = PreferenceScorer.from_pretrained(directory, dtype="float32").embed(talks(4))
    assert stored.v_ND.dtype == wide.v_ND.dtype == torch.float32
    assert 1e-6 < float((stored.v_ND - wide.v_ND).abs().max()) < 0.1


@pytest.mark.parametrize(("has_instructions", "computed"), [(False, torch.float32), (True, torch.bfloat16)])
def test_auto_computes_as_stored_but_never_in_emulated_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_instructions: bool, computed: torch.dtype
) -> None:
    directory = save_scorer(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: has_instructions)
    scorer = PreferenceScorer.from_pretrained(directory, backend="transformers", device="cpu")
    assert scorer.backend.model.backbone.dtype == computed  # type: ignore[attr-defined]


def test_truncation_is_counted_and_said(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = PreferenceScorer.from_pretrained(tiny, max_length=110)
    with caplog.at_level(logging.WARNING):
        found = scorer.embed(talks(4))
    lengths = [len(one.input_ids) for one in PreferenceScorer.from_pretrained(tiny).encoder.encode(talks(4))]
    assert found.truncated_N.tolist() == [length > 110 for length in lengths]
    assert 0 < int(found.truncated_N.sum()) < 4
    assert f"{int(found.truncated_N.sum())} of 4 conversations are longer than max_length = 110" in caplog.text


def test_policies_override_what_the_checkpoint_says(tiny: Path) -> None:
    plain = PreferenceScorer.from_pretrained(tiny)
    other = PreferenceScorer.from_pretrained(tiny, tau=0.5, l2_normalize=False)
    assert (plain.tau, other.tau) == (0.1, 0.5) and not other.settings.card_compatible
    raw, unit = other.embed(talks(2)).v_ND, plain.embed(talks(2)).v_ND
    states = plain.backend.hidden_states(plain.encoder.encode(talks(2))).answer_NH
    torch.testing.assert_close(raw, states @ read_tensors(tiny, ["value_head.weight"])["value_head.weight"].T)
    torch.testing.assert_close(raw / raw.norm(dim=-1, keepdim=True), unit)
    assert not torch.allclose(raw, unit)


def test_a_bradley_terry_table_is_the_difference_of_rewards(tmp_path: Path) -> None:
    scorer = PreferenceScorer.from_pretrained(save_scorer(tmp_path, RewardSettings.published(1)))
    found = scorer.embed(talks(3))
    assert scorer.tau == 1.0 and found.gate_NL is None and found.v_ND.shape == (3, 1)
    assert preference_table(found.v_ND)[0, 1] == found.v_ND[0, 0] - found.v_ND[1, 0]


def test_no_conversations_give_empty_results(tiny: Path) -> None:
    found = PreferenceScorer.from_pretrained(tiny).embed([])
    assert found.v_ND.shape == (0, 6) and found.truncated_N.shape == (0,)
    assert found.gate_NL is not None and found.gate_NL.shape == (0, 3)


def test_mistakes_are_refused_with_the_next_step(tiny: Path) -> None:
    scorer = PreferenceScorer.from_pretrained(tiny)
    wrong: tuple[Any, ...] = ("text", [])
    for responses in wrong:
        with pytest.raises(RewardInputError, match="expected a list of at least one string"):
            scorer.table([{"role": "user", "content": "q"}], responses)
    with pytest.raises(RewardInputError, match="the prompt is a string"):
        scorer.table("q", ["a"])  # type: ignore[arg-type]
    with pytest.raises(RewardInputError, match="the prompt has no messages"):
        scorer.table([], ["a"])
    with pytest.raises(RewardInputError, match="expected one of: auto, transformers, vllm"):
        PreferenceScorer.from_pretrained(tiny, backend="onnx")
    with pytest.raises(RewardInputError, match="dtype is 'int4'"):
        PreferenceScorer.from_pretrained(tiny, dtype="int4")
    with pytest.raises(RewardInputError, match="unknown policy bos"):
        PreferenceScorer.from_pretrained(tiny, bos="none")


def test_text_that_no_tokenizer_takes_is_told_with_its_place(tiny: Path) -> None:
    scorer = PreferenceScorer.from_pretrained(tiny)
    half = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a \ud83d"}]
    with pytest.raises(RewardInputError, match=r"row 2: '\\ud83d' is half of a surrogate pair"):
        scorer.embed([*talks(2), half])
    with pytest.raises(RewardInputError, match="row 1: .*half of a surrogate pair"):
        scorer.table([{"role": "user", "content": "q"}], ["a", "\ud800"])


def test_auto_says_which_back_end_it_took(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        PreferenceScorer.from_pretrained(tiny)
    assert "back end: transformers" in caplog.text and "device: " in caplog.text


def test_the_package_exports_its_three_names() -> None:
    assert reward.PreferenceScorer is PreferenceScorer
    assert reward.GeneralPreferenceModel is GeneralPreferenceModel
    assert set(reward.__all__) <= set(dir(reward))
    with pytest.raises(AttributeError, match="no attribute 'Scorer'"):
        reward.Scorer  # noqa: B018
