"""The order of what the end-to-end benchmark starts: a small run that is not counted, then the ways in turn.

Run: python -m pytest tests/benchmarks/test_end_to_end.py
"""

import argparse
from pathlib import Path

import pytest

from benchmarks import end_to_end
from benchmarks.end_to_end import STAGES, WARM_UP_PROMPTS, WORKLOAD, measure


def options(rounds: int, least_minutes: float) -> argparse.Namespace:
    workload = dict.fromkeys(WORKLOAD, 8) | {"prompts": 170}
    return argparse.Namespace(rounds=rounds, least_minutes=least_minutes, **workload)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(folder, program) of all that was started; each takes two minutes."""
    found: list[tuple[str, str]] = []

    def program(stage: str, work: Path, options: argparse.Namespace, *more: str) -> float:
        assert (work.parent / "prompts").read_text() == str(options.prompts), "the prompts of this very workload"
        assert stage != "trl-train" or more == ("--pairs-a-pass", "8", "--attention", "sdpa"), "the fastest"
        found.append((str(work.relative_to(work.parents[1] if work.name == "gpo" else work.parent)), stage))
        return 120.0

    def prepare(folder: Path, options: argparse.Namespace) -> None:
        (folder / "prompts").write_text(str(options.prompts))

    monkeypatch.setattr(end_to_end, "program", program)
    monkeypatch.setattr(end_to_end, "prepare", prepare)
    tries = [{"pairs_a_pass": pairs, "attention": "sdpa", "seconds": 8 / pairs} for pairs in (4, 8)]
    monkeypatch.setattr(end_to_end, "try_settings", lambda work, options: tries)
    monkeypatch.setattr(end_to_end, "gpo_stages", lambda work: {"generate 1": 30.0, "train 1": 80.0})
    monkeypatch.setattr(end_to_end, "answer_tokens", lambda way, work: 60.0)
    return found


def test_ways_take_turns_behind_a_small_run_that_is_not_counted(started: list[tuple[str, str]]) -> None:
    found = measure(options(rounds=2, least_minutes=1.0))
    assert started[0] == ("warm-up/gpo", "run") and WARM_UP_PROMPTS < 170
    turns = ["gpo-0", "trl-0", "limit-0", "limit-1", "trl-1", "gpo-1"]
    assert list(dict.fromkeys(folder for folder, _ in started[1:])) == turns
    assert found["seconds"] == {way: [120.0 * len(STAGES[way])] * 2 for way in STAGES}
    assert [one["pairs_a_pass"] for one in found["tried_for_trl"]["settings"]] == [4, 8], "tried once"


def test_a_way_that_is_over_too_soon_ends_the_benchmark(started: list[tuple[str, str]]) -> None:
    with pytest.raises(RuntimeError, match="gpo took 120 s, less than 5 minutes: give more --prompts"):
        measure(options(rounds=1, least_minutes=5.0))
    assert started == [("warm-up/gpo", "run"), ("gpo-0", "run")], "the small run need not be long"
