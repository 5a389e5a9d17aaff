"""Which checkpoint a run takes, and what it warns of.

Run: python -m pytest tests/gpo/evaluation/test_choice_and_watch.py
"""

from typing import Any

import numpy as np
import pytest

from gpo.evaluation.choice import choose, win_matrix
from gpo.evaluation.watch import against_length, length_correlation, paired_samples, signs, watched


def evaluated(*rows: list[float], judge: str = "gpm", **start: Any) -> list[dict[str, Any]]:
    """Row t: win rates of iteration t + 1 against the start and each earlier iteration."""
    return [
        {
            "judges": {
                judge: {
                    "vs_start": {"win_rate": row[0], **start},
                    "vs": {str(number): {"win_rate": rate} for number, rate in enumerate(row[1:], start=1)},
                }
            }
        }
        for row in rows
    ]


def both(own: list[float], other: list[float]) -> list[dict[str, Any]]:
    return [
        {"judges": {name: {"vs_start": {"win_rate": rate}, "vs": {}} for name, rate in (("gpm", a), ("oracle", b))}}
        for a, b in zip(own, other, strict=True)
    ]


CYCLE = evaluated([0.6], [0.7, 0.8], [0.55, 0.7, 0.4])
DOWNHILL = evaluated([0.4], [0.3, 0.45])


def test_the_matrix_has_every_pair_once_and_its_complement() -> None:
    table = win_matrix(CYCLE, "gpm")
    assert table[2, 1] == 0.8 and table[1, 2] == pytest.approx(0.2) and table[0, 3] == pytest.approx(0.45)
    assert table + table.T == pytest.approx(np.ones((4, 4)))


def test_each_rule_takes_its_checkpoint() -> None:
    assert choose(CYCLE, "last", "gpm").iteration == 3
    assert choose(CYCLE, "best", "gpm").iteration == 2
    found = choose(CYCLE, "nash", "gpm")
    assert found.iteration == 2 and found.nash_weights == pytest.approx([0, 0, 1, 0], abs=1e-6)
    assert "iteration 2 (70.0% against the start" in found.sentence()


def test_where_no_iteration_beats_the_start_the_start_is_chosen() -> None:
    for rule in ("best", "nash"):
        found = choose(DOWNHILL, rule, "gpm")  # type: ignore[arg-type]
        assert found.iteration == 0 and found.win_rate_vs_start == 0.5
        assert "the start, which no iteration beats" in found.sentence()
    assert choose(DOWNHILL, "last", "gpm").iteration == 2


def test_of_equals_the_later_one_is_taken() -> None:
    assert choose(evaluated([0.6], [0.6, 0.5]), "best", "gpm").iteration == 2
    with pytest.raises(ValueError, match="no iteration is evaluated yet"):
        choose([], "last", "gpm")


def test_samples_are_paired_by_their_number() -> None:
    win = [np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.5, 0.6], [0.7, 0.8]])]
    win_N, delta_N = paired_samples(win, [[10, 20], [30, 40]], [[1, 2], [3, 50]])
    assert win_N.tolist() == [0.1, 0.4, 0.5, 0.8] and delta_N.tolist() == [-9, -18, -27, 10]


def test_a_judge_that_follows_length_is_told() -> None:
    rng = np.random.default_rng(0)
    delta_N = rng.normal(-20, 15, 200)
    win_N = 1 / (1 + np.exp(delta_N / 10))
    found = against_length(win_N, delta_N)
    assert found["length_control"].endswith("without instruction difficulties")
    assert found["length_correlation"] > 0.9 and win_N.mean() - found["length_controlled_win_rate"] > 0.2
    told = signs(evaluated([float(win_N.mean())], **found), "gpm")
    assert "gpm prefers the longer answer: correlation +0." in told[0]
    assert "points of the win rate by gpm go when length is controlled" in told[1]


def test_a_judge_that_does_not_is_not_told() -> None:
    rng = np.random.default_rng(1)
    win_N, delta_N = rng.random(200), rng.normal(0, 15, 200)
    assert signs(evaluated([float(win_N.mean())], **against_length(win_N, delta_N)), "gpm") == []
    assert length_correlation(np.full(9, 0.5), np.arange(9.0)) is None
    few = against_length(np.array([0.5, 0.6]), np.array([1.0, 2.0]))
    assert few["length_controlled_win_rate"] is None
    assert few["length_control"] == "none: 2 pairs, and the fit needs at least 5"


def test_the_length_controlled_rate_is_compared_with_that_of_the_same_pairs() -> None:
    # Sample k against sample k is a draw, every other pair is won: no length is in it.
    table = np.where(np.eye(3) == 1, 0.5, 1.0)
    pairs = paired_samples([table] * 10, [[9, 5, 7]] * 10, [[7, 7, 7]] * 10)
    found = against_length(*pairs)
    assert found["paired_win_rate"] == 0.5 and found["length_controlled_win_rate"] == pytest.approx(0.5, abs=1e-3)
    assert signs(evaluated([float(table.mean())], **found), "gpm") == []


def test_judges_that_part_are_told() -> None:
    (told,) = signs(both([0.6, 0.7], [0.55, 0.5]), "gpm")
    assert told.startswith("since iteration 1 the win rate by gpm rose by 10.0 points while that by oracle fell by 5.0")
    assert signs(both([0.6, 0.7], [0.55, 0.56]), "gpm") == []
    (told,) = signs(both([0.6], [0.4]), "gpm")
    assert told.startswith("since the start the win rate by gpm rose"), "the first iteration is compared with the start"


def test_judges_that_part_slowly_are_told_too() -> None:
    own, its = [0.60, 0.62, 0.64, 0.66], [0.55, 0.54, 0.53, 0.52]
    assert [len(signs(both(own[:count], its[:count]), "gpm")) for count in (1, 2, 3, 4)] == [0, 0, 1, 1]
    (told,) = signs(both(own, its), "gpm")
    assert told.startswith("since iteration 1 the win rate by gpm rose by 6.0 points while that by oracle fell by 3.0")
    (told,) = signs(both([0.53, 0.56], [0.49, 0.48]), "gpm")
    assert told.startswith("since the start the win rate by gpm rose by 6.0 points while that by oracle fell by 2.0")


def test_a_watch_that_is_off_says_so_in_the_record() -> None:
    evaluations = both([0.6], [0.4])
    assert watched(evaluations, "gpm") == {"warnings": signs(evaluations, "gpm"), "watch_off": None}
    found = watched(evaluations, "another")
    assert found["warnings"] == []
    assert "trains on another" in found["watch_off"] and "preference.judges (gpm, oracle)" in found["watch_off"]
