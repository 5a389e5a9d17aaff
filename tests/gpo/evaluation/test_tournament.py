"""Tournament numbers on games whose answer is known.

Run: python -m pytest tests/gpo/evaluation/test_tournament.py
"""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpo.evaluation.contest import summary
from gpo.evaluation.tournament import elo_ratings, find_cycles, nash_weights, tournament
from gpo.evaluation.tournament_picture import picture
from gpo.evaluation.winrate import win_rate

ROCK_PAPER_SCISSORS = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])


def skew_table(seed: int, count: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((count, count)), 1)
    return upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(count)


def win_table(seed: int, prompts: int, count: int) -> np.ndarray:
    return np.stack([skew_table(seed * 1000 + prompt, count) for prompt in range(prompts)])


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_nobody_beats_the_nash_mixture(seed: int, count: int) -> None:
    table = skew_table(seed, count)
    weight = nash_weights(table)
    assert weight.sum() == pytest.approx(1) and weight.min() >= 0
    assert (weight @ table).min() >= 0.5 - 1e-5


def test_known_nash_mixtures() -> None:
    assert nash_weights(ROCK_PAPER_SCISSORS) == pytest.approx([1 / 3] * 3, abs=1e-6)
    best = np.array([[0.5, 0.6, 0.7], [0.4, 0.5, 0.1], [0.3, 0.9, 0.5]])
    assert nash_weights(best) == pytest.approx([1, 0, 0], abs=1e-6)
    # Scissors stand twice: the two copies share what one would have had, as the largest entropy wants it.
    doubled = ROCK_PAPER_SCISSORS[np.ix_([0, 1, 2, 2], [0, 1, 2, 2])]
    assert nash_weights(doubled) == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6], abs=1e-4)
    assert nash_weights(np.full((4, 4), 0.5)) == pytest.approx([0.25] * 4, abs=1e-4)


def test_weighted_rock_paper_scissors_has_its_closed_form() -> None:
    a, b, c = 0.1, 0.2, 0.3  # margins of 0 over 1, 1 over 2, 2 over 0
    table = 0.5 + np.array([[0, a, -c], [-a, 0, b], [c, -b, 0]])
    assert nash_weights(table) == pytest.approx(np.array([b, c, a]) / (a + b + c), abs=1e-5)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_elo_gives_back_the_ratings_a_table_was_made_of(seed: int, count: int) -> None:
    rating = np.random.default_rng(seed).normal(0, 150, count)
    table = 1 / (1 + 10 ** (-(rating[:, None] - rating[None, :]) / 400))
    assert elo_ratings(table) == pytest.approx(rating - rating.mean() + 1000, abs=3)


def test_elo_of_a_checkpoint_that_never_loses_is_finite() -> None:
    found = elo_ratings(np.array([[0.5, 1.0], [0.0, 0.5]]))
    assert np.isfinite(found).all() and found[0] > found[1]


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_cycles_are_those_of_a_loop_over_permutations(seed: int, count: int) -> None:
    table = skew_table(seed, count)
    expected = {
        triple
        for triple in itertools.permutations(range(count), 3)
        if triple[0] == min(triple)
        and all(table[a, b] > 0.5 for a, b in ((triple[0], triple[1]), (triple[1], triple[2]), (triple[2], triple[0])))
    }
    cycles, decided = find_cycles(table, table)
    assert {cycle.checkpoints for cycle in cycles} == expected and len(cycles) == len(expected)
    assert decided == len(list(itertools.combinations(range(count), 3)))


def test_a_cycle_is_decided_only_when_all_its_intervals_exclude_one_half() -> None:
    low = ROCK_PAPER_SCISSORS - 0.2
    assert find_cycles(ROCK_PAPER_SCISSORS, low)[0][0].decided
    low[2, 1] = 0.45
    (cycle,) = find_cycles(ROCK_PAPER_SCISSORS, low)[0]
    assert cycle.checkpoints == (0, 2, 1) and not cycle.decided


def test_a_tie_decides_no_triple() -> None:
    assert find_cycles(np.full((3, 3), 0.5), np.full((3, 3), 0.5)) == ([], 0)


def test_a_cell_of_the_matrix_is_the_win_rate_of_its_pair_with_its_interval() -> None:
    win = win_table(3, 40, 4)
    found = tournament(win, seed=2)
    for i, j in itertools.permutations(range(4), 2):
        alone = win_rate(win[:, i, j][:, None, None], seed=2)
        assert found.win_rate_NN[i, j] == pytest.approx(alone.win_rate, abs=1e-12)
        assert (found.low_NN[i, j], found.high_NN[i, j]) == pytest.approx(alone.ci95, abs=1e-12)
    assert found.win_rate_NN + found.win_rate_NN.T == pytest.approx(np.ones((4, 4)))


def test_a_table_that_is_not_skew_is_refused() -> None:
    with pytest.raises(ValueError, match="do not add to 1"):
        tournament(np.full((2, 3, 3), 0.4))
    with pytest.raises(ValueError, match=r"shape \[2, 3, 2\]"):
        tournament(np.full((2, 3, 2), 0.5))


def test_the_picture_is_well_formed_and_names_every_pair() -> None:
    found = tournament(win_table(1, 30, 3))
    names = ["<start>", "one & only", "two"]
    root = ElementTree.fromstring(picture(names, found))
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 6 and titles[0].startswith("<start> over one & only: ")
    assert "(2) one & only" in summary(names, found)
