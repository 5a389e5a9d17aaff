"""Win rates, standard errors and length buckets against plain loops.

Run: python -m pytest tests/gpo/evaluation/test_pair_numbers.py
"""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.evaluation.pair_numbers import by_length, pair_numbers

chances = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.500001, 0.9, 1.0]), min_size=2, max_size=40)


@given(chances)
def test_numbers_are_those_of_a_plain_loop(win: list[float]) -> None:
    found = pair_numbers(np.array(win))
    assert found.win_rate == pytest.approx(statistics.fmean(win))
    assert found.standard_error == pytest.approx(statistics.stdev(win) / len(win) ** 0.5)
    hard = [1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in win]
    assert found.discrete_win_rate == pytest.approx(statistics.fmean(hard))
    assert (found.n_wins, found.n_wins_base, found.n_draws) == (hard.count(1.0), hard.count(0.0), hard.count(0.5))
    assert found.n == len(win)


@given(chances)
def test_the_other_side_has_one_minus_the_win_rate(win: list[float]) -> None:
    one, other = pair_numbers(np.array(win)), pair_numbers(1 - np.array(win))
    assert one.win_rate + other.win_rate == pytest.approx(1, abs=1e-12)
    assert one.standard_error == pytest.approx(other.standard_error)


def test_a_single_row_has_no_standard_error() -> None:
    assert pair_numbers(np.array([0.7])).standard_error is None


def test_what_is_no_chance_is_refused() -> None:
    for win in ([], [1.1], [np.nan]):
        with pytest.raises(ValueError, match=r"at least one preference, all in \[0, 1\]"):
            pair_numbers(np.array(win))


def test_every_row_falls_into_one_bucket() -> None:
    model, base = np.array([10, 50, 100, 125, 200, 5, 0, 0.0]), np.array([100, 100, 100, 100, 100, 0, 0, 9.0])
    win = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    found = by_length(win, model, base)
    assert [bucket.n for bucket in found] == [2, 1, 2, 1, 2]
    rates = [bucket.win_rate for bucket in found]
    assert rates == pytest.approx([0.45, 0.2, 0.5, 0.4, 0.55])  # 0/0 counts as equal length, 5/0 as longest
    assert found[0].ratio_from == 0 and found[-1].ratio_below is None
    assert by_length(win[:1], model[:1], base[:1])[1].win_rate is None
