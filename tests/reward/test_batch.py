"""Batch scoring: forms in and out, bad rows, order.

Run: python -m pytest tests/reward/test_batch.py
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.batch import BatchSettings, score_chunk, score_file
from reward.batch_forms import check_rows
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.preference import preference_score
from reward.row_files import FileRow
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.reward.batch_files import WORDS, group, mixed, pair, read, save_scorer, talk, write
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
TABLES = ("table", "table_over_tau", "table_probability")
SMALL = BatchSettings(max_length=512, batch_rows=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("batch"), RewardSettings.published(6, True))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found).float(), torch.as_tensor(expected).float(), rtol=0, atol=1e-6)


def test_pairs_and_groups_agree_with_the_scorers_table(tiny: Path, tmp_path: Path) -> None:
    rows = mixed(9)
    summary = score_file(tiny, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", SMALL)
    scorer = PreferenceScorer.from_pretrained(tiny, max_length=512)
    lines = read(tmp_path / "out.jsonl")
    assert [line["row"] for line in lines] == list(range(1, 10))
    for row, line in zip(rows, lines, strict=True):
        if "responses" in row:
            close(line["table"], scorer.table(talk(row["prompt"]), row["responses"]))
            assert list(line) == ["row", *TABLES, "gate", "truncated"] and line["truncated"] == [False] * 3
            for i, j in itertools.product(range(3), repeat=2):
                score, over_tau, probability = (line[name][i][j] for name in TABLES)
                assert score == -line["table"][j][i] and over_tau == pytest.approx(score / 0.1)
                assert probability == pytest.approx(1 / (1 + math.exp(-over_tau)))
            continue
        answers = [row[name][-1]["content"] for name in ("chosen", "rejected")]
        close(line["score"], scorer.table(row["chosen"][:-1], answers)[0, 1])
        assert list(line) == ["row", "score", "score_over_tau", "probability", "gate", "truncated"]
        assert line["score_over_tau"] == pytest.approx(line["score"] / 0.1)
        assert line["probability"] == pytest.approx(1 / (1 + math.exp(-line["score_over_tau"])))
        close(line["gate"], scorer.embed([row["chosen"]]).gate_NL[0])  # type: ignore[index]
    preferred = sum(line.get("score", 0) > 0 for line in lines)
    assert (summary.rows, summary.failed, summary.pairs, summary.preferred) == (9, 0, 6, preferred)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_custom_format_is_read_without_a_template(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a sea.", "chosen": "North", "reject": "Everest", "label": 1},
        {"instruction": "Name a sea.", "chosen": {"response": "North"}, "reject": {"response": "Everest"}},
        {"instruction": "Name a sea.", "chosen": "North", "rejected": "Everest"},
    ]
    score_file(tiny, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", SMALL)
    scorer = PreferenceScorer.from_pretrained(tiny, max_length=512)
    custom = [scorer.encoder.encode_custom("Name a sea.", text) for text in ("North", "Everest")]
    with torch.no_grad():
        v_ND, gate_NL = scorer.heads(*scorer.backend.hidden_states(custom))
    first, second, third = read(tmp_path / "out.jsonl")
    close(first["score"], preference_score(v_ND[:1], v_ND[1:], gate_NL[:1])[0])
    assert {**second, "row": 1} == first
    close(third["score"], scorer.table(talk("Name a sea."), ["North", "Everest"])[0, 1])
    assert abs(third["score"] - first["score"]) > 1e-4


def test_rows_that_need_no_template_are_counted(tmp_path: Path) -> None:
    custom = {"instruction": "q", "chosen": "a", "reject": "b"}
    rows = [custom, pair(0), group(0), {**custom, "reject": {"response": "b"}}, {**custom, "rejected": "c"}, "{broken"]
    assert check_rows(write(tmp_path / "in.jsonl", rows), strict=False) == (6, 2)


NAMED = (
    "{% for m in messages %}{{ m['role'] }}{% if m['name'] is defined %} {{ m['name'] + '!' }}{% endif %}"
    ": {{ m['content'] }}\n{% endfor %}"
)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_other_keys_of_messages_reach_the_template_as_they_do_in_python(ending: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", template=NAMED, layers=1)
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(2)).save_pretrained(tmp_path / "reward")
    prompt = [{"role": "user", "content": "q", "name": "Ada"}]
    rows = [
        {name: [*prompt, *talk("q", text)[1:]] for name, text in (("chosen", "a"), ("rejected", "b"))},
        {"prompt": prompt, "responses": ["a", "b"]},
    ]
    # Parquet has every column in every row.
    rows = [dict.fromkeys(["chosen", "rejected", "prompt", "responses"]) | row for row in rows]
    score_file(tmp_path / "reward", write(tmp_path / f"in{ending}", rows), tmp_path / "out.jsonl", SMALL)
    score_KK = PreferenceScorer.from_pretrained(tmp_path / "reward", max_length=512).table(prompt, ["a", "b"])
    first, second = read(tmp_path / "out.jsonl")
    close(first["score"], score_KK[0, 1])
    close(second["table"], score_KK)
    plain = PreferenceScorer.from_pretrained(tmp_path / "reward", max_length=512).table(talk("q"), ["a", "b"])
    assert abs(float(plain[0, 1] - score_KK[0, 1])) > 1e-4


def test_a_key_of_a_kind_that_the_template_does_not_expect_is_a_bad_row(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", template=NAMED, layers=1)
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(2)).save_pretrained(tmp_path / "reward")
    rows = [{"prompt": [{"role": "user", "content": "q", "name": 3}], "responses": ["a"]}, group(0)]
    score_file(tmp_path / "reward", write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", SMALL)
    first, second = read(tmp_path / "out.jsonl")
    assert first["error"].startswith("row 1: the chat template refuses") and "table" in second


@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_every_file_form_gives_the_same_lines(ending: str, tiny: Path, tmp_path: Path) -> None:
    rows = [pair(place) for place in range(6)]
    score_file(tiny, write(tmp_path / "a.jsonl", rows), tmp_path / "a.out.jsonl", SMALL)
    score_file(tiny, write(tmp_path / f"b{ending}", rows), tmp_path / f"b.out{ending}", SMALL)
    expected = read(tmp_path / "a.out.jsonl")
    if ending == ".parquet":
        expected = [{**line, **dict.fromkeys([*TABLES, "error"])} for line in expected]
        assert read(tmp_path / "b.out.parquet") == expected
    else:
        assert (tmp_path / "b.out.json").read_bytes() == (tmp_path / "a.out.jsonl").read_bytes()


def test_tables_and_errors_have_columns_of_their_own_in_parquet(tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", [pair(0), group(1), "{broken"])
    score_file(tiny, data, tmp_path / "out.jsonl", SMALL)
    score_file(tiny, data, tmp_path / "out.parquet", SMALL)
    found = [
        {name: value for name, value in row.items() if value is not None} for row in read(tmp_path / "out.parquet")
    ]
    assert found == read(tmp_path / "out.jsonl") and set(TABLES) < set(found[1])


def test_a_bradley_terry_model_has_no_gate(tmp_path: Path) -> None:
    model = save_scorer(tmp_path, RewardSettings.published(1))
    score_file(model, write(tmp_path / "in.jsonl", mixed(3)), tmp_path / "out.jsonl", SMALL)
    lines = read(tmp_path / "out.jsonl")
    assert [line["gate"] for line in lines] == [None] * 3
    assert lines[0]["score_over_tau"] == lines[0]["score"]


def test_truncation_is_told_answer_by_answer(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "responses": ["a", WORDS * 9]},
        {"chosen": talk("q", WORDS * 9), "rejected": talk("q", "a")},
    ]
    summary = score_file(
        tiny, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", BatchSettings(max_length=100)
    )
    assert [line["truncated"] for line in read(tmp_path / "out.jsonl")] == [[False, True], [True, False]]
    assert summary.truncated == 2


BAD = {
    '{"chosen": ': "not valid JSON",
    "[1, 2]": "found list, expected an object",
    "{}": "neither `chosen` nor `responses`, found no fields",
    '{"prompt": "q", "responses": []}': "responses is [], expected a list of at least one text",
    '{"prompt": "q", "responses": ["a", 3]}': "response 1 is 3, expected text",
    '{"prompt": [], "responses": ["a"]}': "prompt is [], expected text or a list of messages",
    '{"prompt": [{"role": "user"}], "responses": ["a"]}': "message 0 of prompt: content is None",
    '{"instruction": "q", "chosen": {"answer": "a"}, "reject": "b"}': "chosen.response is None, expected text",
    '{"instruction": "q", "chosen": 5, "reject": "b"}': 'chosen is 5, expected text or {"response": text}',
    '{"chosen": [{"role": "user", "content": "q"}], "rejected": []}': "chosen is a list of 1",
    json.dumps({"chosen": talk("p", "a"), "rejected": talk("q", "b")}): "differ before their last message",
    '{"prompt": "q", "responses": ["\\ud800"]}': "half of a surrogate pair",
}


def test_a_bad_row_becomes_an_error_in_its_place_and_the_rest_goes_on(tiny: Path, tmp_path: Path) -> None:
    rows = [pair(0), *BAD, group(1)]
    summary = score_file(tiny, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", SMALL)
    lines = read(tmp_path / "out.jsonl")
    assert [line["row"] for line in lines] == list(range(1, len(rows) + 1))
    assert "score" in lines[0] and "table" in lines[-1]
    for line, message in zip(lines[1:-1], BAD.values(), strict=True):
        assert set(line) == {"row", "error"}
        assert line["error"].startswith(f"row {line['row']}: ") and message in line["error"]
    assert (summary.failed, summary.first_failed) == (len(BAD), [2, 3, 4])


def test_what_the_template_refuses_is_a_bad_row_under_its_own_number(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "gemma", tied=True, layers=1)
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(2)).save_pretrained(tmp_path / "reward")
    system = {"prompt": [{"role": "system", "content": "be brief"}, *talk("q")], "responses": ["a"]}
    data = write(tmp_path / "in.jsonl", [group(0), system])
    score_file(tmp_path / "reward", data, tmp_path / "out.jsonl", SMALL)
    assert "row 2: the chat template refuses" in read(tmp_path / "out.jsonl")[1]["error"]
    assert check_rows(data, strict=True) == (2, 0)
    with pytest.raises(RewardInputError, match=r"in\.jsonl, row 2: the chat template refuses"):
        score_file(tmp_path / "reward", data, tmp_path / "strict.jsonl", SMALL, strict=True)
    assert [line["row"] for line in read(tmp_path / "strict.jsonl.part")] == [1]


def test_a_chunk_is_tokenised_at_once_and_equal_prompts_are_rendered_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = PreferenceScorer.from_pretrained(tiny, max_length=512)
    batches: list[int] = []
    original = scorer.encoder._tokenise

    def tokenise(texts: list[str]) -> list[list[int]]:
        batches.append(len(texts))
        return original(texts)

    monkeypatch.setattr(scorer.encoder, "_tokenise", tokenise)
    rows = [{"prompt": "the same", "responses": [f"{place}", "x"]} for place in range(3)]
    lines = score_chunk(scorer, [FileRow(place, row) for place, row in enumerate(rows, 1)])
    # Three answers and x, and their prompt.
    assert batches == [5] and all("table" in line for line in lines)


def test_blank_lines_are_no_rows_but_count_as_lines(tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", ["", json.dumps(pair(0)), "  ", json.dumps(pair(1))])
    score_file(tiny, data, tmp_path / "out.jsonl", SMALL)
    assert [line["row"] for line in read(tmp_path / "out.jsonl")] == [2, 4]
