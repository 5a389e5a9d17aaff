"""The exact games as claims: made of what was measured only, and what was left out is told.

Run: python -m pytest tests/benchmarks/test_nash.py
"""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import nash
from benchmarks.nash import claims_of

GAME = {"final": {"self, last": 0.4, "self, average": 0.011, "optimistic, last": 0.03}}


def test_average_and_optimistic_play_of_every_game_are_claims_and_the_circling_policy_is_not() -> None:
    average, last = claims_of({"a game": GAME})
    assert average.holds and average.what == "exact game, a game: exploitability (self, average)"
    assert not last.holds and last.value == 0.03


@pytest.mark.parametrize("words", [[], ["--chart", "not-there.json"]])
def test_a_chart_that_is_not_there_is_told_and_is_no_claim(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path | None] = []

    def exact(chart: Path | None) -> dict[str, object]:
        asked.append(chart)
        return {"rock": GAME | {"final_with_pull": 0.1, "curves": {}}}

    monkeypatch.setattr(nash, "exact_curves", exact)
    output = tmp_path / "nash.json"
    monkeypatch.setattr(sys, "argv", ["nash", "--output", str(output), "--iterations", "0", *words])
    nash.main()
    assert asked == [None]
    told = "not-there.json is not there" if words else "no --chart was given"
    assert f"not measured, {told}" in capsys.readouterr().out
    found = json.loads(output.read_text())
    what, how = f"exact game, {nash.CHART_GAME}: exploitability", "make bench-full TYPE_CHART=FILE"
    assert len(found["claims"]) == 2 and found["not_measured"] == {what: how}
