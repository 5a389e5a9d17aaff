"""The evaluation's benchmark: its claim holds for a linear cost and for no other.

Run: python -m pytest tests/benchmarks/test_evaluation.py
"""

from pathlib import Path

import pytest

from benchmarks import evaluation
from benchmarks.evaluation import QUICK_SIZES, SIZES, claims_of, tournaments
from benchmarks.frame import MOST_GROWTH, cost_growth


@pytest.mark.parametrize("sizes", [SIZES, QUICK_SIZES])
def test_only_a_linear_cost_is_within_the_claim(sizes: tuple[int, ...]) -> None:
    assert cost_growth(sizes, [9.0 + 3.5 * n for n in sizes]) == pytest.approx(1)
    # R^2 of a straight line through these is above 0.99, though half of the cost at 10 is quadratic.
    assert cost_growth(sizes, [9.0 + n + n**2 / 10 for n in sizes]) > 1.3 > MOST_GROWTH


def test_a_cost_that_does_not_grow_at_first_says_nothing_and_does_not_hold() -> None:
    growth = {"median": cost_growth(SIZES, [9.0, 9.0, 10.0]), "spread": None}
    assert not claims_of({"cost_growth": growth})[0].holds


def test_sizes_take_turns_in_both_orders_behind_one_that_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def timed(*words: str | Path) -> float:
        files = words[words.index("--outputs") + 1 : words.index("--judge")]
        started.append(len(files))
        return float(len(started))

    monkeypatch.setattr(evaluation, "timed", timed)
    files = [tmp_path / str(number) for number in range(10)]
    found = tournaments(files, ("--judge", "gpm:it"), SIZES, 2, tmp_path)
    assert started == [2, 2, 5, 10, 10, 5, 2]
    assert found == {2: [2.0, 7.0], 5: [3.0, 6.0], 10: [4.0, 5.0]}
