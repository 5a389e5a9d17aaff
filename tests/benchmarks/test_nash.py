"""The exact games as claims: made of what was measured only, and what was left out is told.

Run: python -m pytest tests/benchmarks/test_nash.py
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import nash
from benchmarks.nash import claims_of, one_iteration, policy_of, sampled_game, tiny_policy
from tests.tiny import make_tokenizer

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
        return {"rock": GAME | {"final_with_pull": 0.1, "final_by_bradley_terry": 1.0, "curves": {}}}

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


def test_the_real_trainer_moves_the_policy_toward_answers_with_positive_targets() -> None:
    model = tiny_policy(0)
    before = policy_of(model)
    one_iteration(model, [0, 1, 2], torch.tensor([0.5, 0.0, -0.5]), make_tokenizer(), 0.05, 0)
    after = policy_of(model)
    assert after[0] > before[0] + 0.02 and after[2] < before[2] - 0.02


@pytest.mark.parametrize("baseline", ["self", "optimistic"])
def test_a_sampled_game_is_a_policy_an_iteration_and_the_same_from_the_same_seed(baseline: str) -> None:
    played, again = (sampled_game(baseline, iterations=2, samples=8, eta=0.3, rate=0.05) for _ in range(2))
    assert played.shape == (3, 3) and torch.equal(played, again)
    torch.testing.assert_close(played.sum(-1), torch.ones(3, dtype=torch.float64))
    assert (played[1:] - played[:-1]).abs().amax(-1).min() > 1e-3
