"""`gpo eval` and `gpo tournament` as a user starts them, with a tiny GPM in bfloat16.

Run: python -m pytest tests/gpo/evaluation/test_cli_eval.py
"""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpo.command_line import Outcome, gpo
from tests.gpo.evaluation.small_evaluation import answers, make_gpm, read, write_answers

NAMES = ("start", "first", "second", "third")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPM and the answers of four checkpoints, one of them in another order."""
    folder = tmp_path_factory.mktemp("evaluation")
    make_gpm(folder)
    for name in NAMES:
        write_answers(folder, name, answers(name, 70)[:: -1 if name == "second" else 1])
    return folder


def evaluate(place: Path, outputs: str, baseline: str, output: str, *words: str | Path) -> Outcome:
    files = ("--outputs", place / f"{outputs}.json", "--baseline", place / f"{baseline}.json")
    return gpo(place, "eval", *files, "--judge", f"gpm:{place / 'gpm'}", "--output", place / output, *words)


@pytest.fixture(scope="module")
def judged(place: Path) -> dict[str, Any]:
    found = evaluate(place, "second", "start", "e-second-start")
    assert found.status == 0, found
    assert "second against start, judged by gpm:gpm: 70 judged of 70 asked" in found.printed
    assert "without instruction difficulties and gamed rows (none were given)" in found.printed
    return read(place / "e-second-start" / "metrics.json")


@pytest.fixture(scope="module")
def tournament(place: Path) -> dict[str, Any]:
    files = [place / f"{name}.json" for name in NAMES]
    words = ("--judge", f"gpm:{place / 'gpm'}", "--output", place / "tournament")
    found = gpo(place, "tournament", "--outputs", *files, *words)
    assert found.status == 0, found
    assert "cyclic triples:" in found.printed and "(4) third" in found.printed
    assert (place / "tournament" / "tournament.svg").read_text().startswith("<svg")
    return read(place / "tournament" / "tournament.json")


def test_the_files_have_the_fields_of_alpaca_eval(place: Path, judged: dict[str, Any]) -> None:
    rows = read(place / "e-second-start" / "annotations.json")
    by_instruction = {row["instruction"]: row for row in answers("second", 70)}
    for row, asked in zip(rows, answers("start", 70), strict=True):
        assert row["output_1"] == asked["output"] and row["generator_1"] == "start"
        assert row["output_2"] == by_instruction[asked["instruction"]]["output"] and row["generator_2"] == "second"
        assert 1 <= row["preference"] <= 2 and row["annotator"] == "gpm:gpm" and row["dataset"] == "small"
    (board,) = csv.DictReader((place / "e-second-start" / "leaderboard.csv").open())
    assert board[""] == "second" and board["n_total"] == "70"
    mean = sum(row["preference"] - 1 for row in rows) / 70
    assert float(board["win_rate"]) == pytest.approx(100 * mean, abs=1e-9)
    assert judged["win_rate"] == pytest.approx(mean, abs=1e-12)
    assert float(board["length_controlled_winrate"]) == pytest.approx(100 * judged["length_controlled_win_rate"])
    assert board["length_control"] == judged["length_control"]
    assert board["length_control"] == "without instruction difficulties and gamed rows (none were given)"


def test_the_preference_is_that_of_the_scorer_alone(place: Path, judged: dict[str, Any]) -> None:
    from reward import PreferenceScorer

    scorer = PreferenceScorer.from_pretrained(place / "gpm", max_length=512)
    row = read(place / "e-second-start" / "annotations.json")[5]
    table = scorer.table([{"role": "user", "content": row["instruction"]}], [row["output_1"], row["output_2"]])
    alone = 1 / (1 + 2.718281828 ** (-float(table[1, 0]) / scorer.tau))
    # bfloat16: other neighbours in a batch, other rounding.
    assert row["preference"] - 1 == pytest.approx(alone, abs=0.15)
    assert judged["judge"]["tau"] == scorer.tau


def test_swapping_the_files_gives_one_minus_the_win_rate(place: Path, judged: dict[str, Any]) -> None:
    assert evaluate(place, "start", "second", "swapped").status == 0
    swapped = read(place / "swapped" / "metrics.json")
    assert swapped["win_rate"] + judged["win_rate"] == pytest.approx(1, abs=1e-9)
    assert swapped["discrete_win_rate"] + judged["discrete_win_rate"] == pytest.approx(1, abs=1e-9)
    one, other = ({row["instruction"]: row["preference"] - 1 for row in read(place / folder / "annotations.json")}
                  for folder in ("swapped", "e-second-start"))  # fmt: skip
    assert all(one[key] + other[key] == pytest.approx(1, abs=1e-9) for key in one)


def test_the_numbers_say_how_they_were_made(judged: dict[str, Any], tournament: dict[str, Any]) -> None:
    assert (judged["n_asked"], judged["n_judged"]) == (70, 70)
    assert judged["difficulties"] is None and judged["gamed"] is None
    assert judged["judge"]["kind"] == "gpm" and len(judged["judge"]["made_from"]["outputs"]["model"]) == 64
    assert sum(bucket["n"] for bucket in judged["by_length_ratio"]) == 70
    made_from = judged["judge"]["made_from"]["outputs"]
    assert tournament["judge"]["made_from"] == {key: value for key, value in made_from.items() if key != "data"}
    assert tournament["checkpoints"][NAMES.index("second")]["sha256"] == made_from["data"]
    assert tournament["bootstrap"] == judged["bootstrap"] == {"draws": 2000, "seed": 0}
    assert judged["average_length"]["baseline"] == pytest.approx(
        sum(len(row["output"]) for row in answers("start", 70)) / 70
    )


def test_a_tournament_has_the_numbers_of_pairwise_evaluations(
    place: Path, judged: dict[str, Any], tournament: dict[str, Any]
) -> None:
    assert [one["name"] for one in tournament["checkpoints"]] == list(NAMES)
    pairs = {("second", "start"): judged}
    for pair in (("third", "first"), ("third", "second")):
        assert evaluate(place, *pair, f"e-{'-'.join(pair)}").status == 0
        pairs[pair] = read(place / f"e-{'-'.join(pair)}" / "metrics.json")
    for (outputs, baseline), alone in pairs.items():
        i, j = NAMES.index(outputs), NAMES.index(baseline)
        assert tournament["win_rate"][i][j] == pytest.approx(alone["win_rate"], abs=1e-12)
        assert tournament["win_rate"][j][i] == pytest.approx(1 - alone["win_rate"], abs=1e-12)
        both = [tournament["ci95_low"][i][j], tournament["ci95_high"][i][j]]
        # The draws are over prompts in the first file's order, which for `second` is another one.
        assert both == pytest.approx(alone["ci95"], abs=1e-9 if baseline != "second" else 0.03)


def test_each_answer_is_read_once_and_a_further_checkpoint_costs_one_more_file(
    place: Path, tournament: dict[str, Any], tmp_path: Path
) -> None:
    cache = place / "tournament" / "cache" / "embeddings"
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(before) == 4
    write_answers(place, "fourth", answers("fourth", 70))
    files = [place / f"{name}.json" for name in (*NAMES, "fourth")]
    words = ("--judge", f"gpm:{place / 'gpm'}", "--output", tmp_path, "--cache", cache.parent)
    found = gpo(place, "tournament", "--outputs", *files, *words)
    assert found.status == 0 and found.said.count("read by the GPM") == 1, found
    after = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(after) == 5 and {name: after[name] for name in before} == before
    smaller = [row[:4] for row in read(tmp_path / "tournament.json")["win_rate"][:4]]
    assert smaller == tournament["win_rate"]


def test_an_evaluation_goes_on_behind_what_an_earlier_start_read(place: Path, judged: dict[str, Any]) -> None:
    assert evaluate(place, "second", "start", "whole").status == 0
    (done,) = (place / "whole" / "cache" / "embeddings").glob("start-*.jsonl")
    lines = done.read_text().splitlines(keepends=True)
    cut = done.with_name(f"{done.name}.part")
    cut.write_text("".join(lines[:30]) + lines[30][:9])  # torn in the middle of a chunk and of a line
    done.with_name(f"{done.name}.part.meta").write_text(
        json.dumps(read(place / "whole" / "metrics.json")["judge"]["made_from"]["baseline"])
    )
    done.unlink()
    found = evaluate(place, "second", "start", "whole")
    assert found.status == 0 and "going on after 30 answers" in found.said, found
    assert done.read_text() == "".join(lines)
    assert read(place / "whole" / "metrics.json")["win_rate"] == judged["win_rate"]


def test_mistakes_are_status_2_and_name_what_to_mend(place: Path, tmp_path: Path) -> None:
    def refused(found: Outcome, *words: str) -> None:
        assert found.status == 2, found
        for word in words:
            assert word in found.said, f"{word!r} is not in:\n{found.said}"

    write_answers(place, "short", answers("short", 60))
    out = str(tmp_path / "none")
    refused(evaluate(place, "short", "start", out), "short.json: 10 of the 70 instructions of", "are missing: 'Say")
    refused(evaluate(place, "nobody", "start", out), "nobody.json: no such file")
    start = ("--outputs", place / "start.json", "--output", out)
    refused(
        gpo(place, "eval", *start, "--baseline", place / "first.json", "--judge", "gpt"), "--judge gpt: expected gpm"
    )
    refused(gpo(place, "eval", *start, "--baseline", place / "first.json", "--judge", "gpm:x"), "x", "config.json")
    refused(evaluate(place, "first", "start", out, "--gamed", place / "start.json"), "--gamed", "need --difficulties")
    refused(
        evaluate(place, "first", "start", out, "--price-prompt", "1"), "--price-prompt: without effect with --judge"
    )
    refused(gpo(place, "tournament", *start, "--judge", f"gpm:{place / 'gpm'}"), "--outputs: one file")
    assert not (tmp_path / "none").exists()


def test_a_number_of_an_earlier_start_does_not_outlive_files_that_changed(place: Path) -> None:
    write_answers(place, "changing", answers("changing", 70))
    assert evaluate(place, "changing", "start", "changed").status == 0
    before = read(place / "changed" / "metrics.json")
    write_answers(place, "changing", answers("another", 70))
    assert evaluate(place, "changing", "start", "changed").status == 0
    after = read(place / "changed" / "metrics.json")
    assert before["win_rate"] != after["win_rate"] and before["outputs"]["sha256"] != after["outputs"]["sha256"]
