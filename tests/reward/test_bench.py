"""RewardBench's sums and quirks, the forms of its rows, and a run over LLMBar-like files.

Run: python -m pytest tests/reward/test_bench.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from reward.bench import PairResult, bench_rows, bench_summary
from reward.errors import RewardInputError
from reward.pair_metrics import wilson_interval
from reward.rewardbench import SECTIONS, missing_subsets, read_bench, section_scores
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.reward.batch_files import save_scorer

LLMBAR = Path(__file__).parents[3] / "shared" / "data" / "llmbar"


def test_sections_weigh_their_subsets_as_published() -> None:
    every = {name: 0.5 for subsets in SECTIONS.values() for name in subsets}
    assert section_scores(every) == {**dict.fromkeys(SECTIONS, 0.5), "Average": 0.5}
    # math-prm counts 984 though the data has 447, as much as the six languages of code together.
    assert section_scores({**every, "math-prm": 1.0})["Reasoning"] == pytest.approx(0.75)
    # The constants of xstest are the wrong way round, and are kept so.
    assert SECTIONS["Safety"]["xstest-should-refuse"] == 250 and SECTIONS["Safety"]["xstest-should-respond"] == 154
    only = section_scores({"alpacaeval-easy": 1.0, "mt-bench-easy": 0.0})
    assert only == {"Chat": pytest.approx(100 / 128)}
    assert "alpacaeval-hard" in missing_subsets(["alpacaeval-easy"])


def test_the_constants_are_those_of_the_benchmark() -> None:
    assert sum(sum(subsets.values()) for subsets in SECTIONS.values()) - 984 + 447 == 2985


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_every_form_of_a_row_is_read(tmp_path: Path) -> None:
    rows = [
        {"id": 5, "subset": "hep-go", "prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": ["one", "two", "three"], "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad"},
        {"prompt": "p", "chosen": talk("p", "good"), "rejected": talk("p", "bad")},
        {"input": "p", "output_1": "bad", "output_2": "good", "label": 2},
        {"instruction": "p", "chosen": "good", "rejected": "bad"},
        {"instruction": "p", "chosen": "bad", "rejected": "good", "target_prob": 0.1},
    ]
    found = read_bench(write(tmp_path / "some.jsonl", rows))
    assert all(one.pair.chosen[-1]["content"] == "good" for one in found)
    assert [one.subset for one in found] == ["hep-go", *["some"] * 6] and found[0].id == "5"
    assert found[3].pair.chosen == talk("p", "good")
    assert [message["role"] for message in found[1].pair.chosen] == ["user", "assistant", "user", "assistant"]
    with pytest.raises(RewardInputError, match=r"row 1: label is 3"):
        read_bench(write(tmp_path / "bad.jsonl", [{"input": "p", "output_1": "a", "output_2": "b", "label": 3}]))


def test_an_answer_that_is_written_in_json_is_a_text_and_an_undecided_pair_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": '[{"name": "Ada"}]', "rejected": '[{"name": '},
        {"instruction": "p", "chosen": "a", "rejected": "b", "target_prob": 0.5},
    ]
    (only,) = read_bench(write(tmp_path / "some.jsonl", rows))
    assert only.pair.chosen[-1]["content"] == '[{"name": "Ada"}]'
    with pytest.raises(RewardInputError, match="no pairs"):
        read_bench(write(tmp_path / "undecided.jsonl", rows[1:]))


@pytest.mark.skipif(not LLMBAR.is_dir(), reason="the shared data are absent")
def test_llmbar_has_the_sizes_of_rewardbenchs_subsets() -> None:
    pairs = read_bench(str(LLMBAR))
    names = [name for name in SECTIONS["Chat Hard"] if name.startswith("llmbar")]
    assert {name: sum(one.subset == name for one in pairs) for name in names} == {
        name: SECTIONS["Chat Hard"][name] for name in names
    }


def test_a_tie_counts_half_or_nothing() -> None:
    rows = [PairResult(str(n), "s", score, score, correct, False) for n, score, correct in ((0, 0.0, 0.5), (1, 1, 1.0))]
    summary = bench_summary(rows, 0.5)
    assert summary["all"]["accuracy"] == 0.75 and summary["subsets"]["s"]["ties"] == 1
    low, high = wilson_interval(0.75, 2)
    assert 0 <= low < 0.75 < high <= 1 and wilson_interval(1.0, 10)[1] == 1.0


def test_scores_are_those_of_the_scorer_in_order(tmp_path: Path) -> None:
    scorer = PreferenceScorer.from_pretrained(save_scorer(tmp_path, RewardSettings.published(4, True)))
    rows = [{"instruction": f"q{number % 3}", "chosen": f"a{number}", "rejected": "b"} for number in range(70)]
    rows.append({"prompt": "same", "chosen": "x", "rejected": "x "})
    pairs = read_bench(write(tmp_path / "pairs.jsonl", rows))
    results = bench_rows(scorer, pairs, 0.0)
    for place in (0, 65):
        table = scorer.table(pairs[place].pair.chosen[:-1], [f"a{place}", "b"])
        assert results[place].score == pytest.approx(float(table[0, 1]), abs=1e-5)
    # The template trims, so the last two are one row to the model.
    assert results[70].score == 0 and results[70].correct == 0.0
