"""The length-controlled win rate against an independent fit, and what it must not depend on.

Agreement with the alpaca-eval package itself is `make alpaca-eval`, which needs an environment of its own; the numbers
planted here come from that package (0.6.6, scikit-learn 1.9.1) on the same rows.
Run: python -m pytest tests/gpo/evaluation/test_length_control.py
"""

import numpy as np
import pytest

from gpo.errors import UserError
from gpo.evaluation.length_control import GamedRows, length_controlled, standardised
from gpo.evaluation.length_files import read_difficulties, read_gamed
from tests.gpo.evaluation.planted_lengths import planted, write_planted

ALPACA_EVAL = {
    "length_controlled_v1": (50.96165389, 0.64033734),
    "length_controlled_noreg": (47.07903964, 0.87727918),
    "length_controlled_minimal": (48.31980476, 0.0),
}
"""(win rate, standard error) in per cent, as `make alpaca-eval` prints them."""


@pytest.mark.parametrize("name", ALPACA_EVAL)
def test_the_fit_is_that_of_the_alpaca_eval_package(name: str) -> None:
    rows = planted()
    difficulty_N = None if name.endswith("minimal") else rows.difficulty_N
    gamed = rows.gamed if name.endswith("v1") else None
    found = length_controlled(rows.win_N, rows.delta_len_N, difficulty_N, gamed)
    assert found.standard_error is not None
    rate, error = ALPACA_EVAL[name]
    assert 100 * found.win_rate == pytest.approx(rate, abs=1e-3)
    assert 100 * found.standard_error == pytest.approx(error, abs=1e-3)


def test_a_preference_for_length_alone_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    delta_N = rng.normal(-400, 300, 400)  # the model's answers are longer
    win_N = 1 / (1 + np.exp(2 * np.tanh(standardised(delta_N))))
    assert win_N.mean() > 0.75
    assert length_controlled(win_N, delta_N).win_rate == pytest.approx(0.5, abs=0.02)


def test_two_equal_rows_say_what_one_row_of_twice_the_weight_would() -> None:
    win_N, delta_N = np.full(20, 0.8), np.zeros(20)
    found = length_controlled(win_N, delta_N)
    assert found.win_rate == pytest.approx(0.8, abs=0.01)
    assert found.coefficients["length"] == 0.0


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_model_that_loses_or_wins_every_row_for_certain_does_so_at_equal_length(rate: float) -> None:
    delta_N = np.random.default_rng(0).normal(-400, 300, 100)
    assert length_controlled(np.full(100, rate), delta_N).win_rate == pytest.approx(rate, abs=0.01)


def test_equal_differences_are_no_length_term() -> None:
    assert standardised(np.full(5, 7.0)).tolist() == [0.0] * 5


def test_rows_without_a_preference_among_the_gamed_are_left_out() -> None:
    rows = planted()
    hole = rows.gamed.preference_G.copy()
    hole[3] = np.nan
    fewer = [np.delete(values, 3) for values in vars_of(rows.gamed)]
    with_hole = GamedRows(hole, *vars_of(rows.gamed)[1:])
    one = length_controlled(rows.win_N, rows.delta_len_N, rows.difficulty_N, with_hole)
    other = length_controlled(rows.win_N, rows.delta_len_N, rows.difficulty_N, GamedRows(*fewer))
    assert one.win_rate == pytest.approx(other.win_rate, abs=1e-9)


def vars_of(gamed: GamedRows) -> list[np.ndarray]:
    return [gamed.preference_G, gamed.std_delta_len_G, gamed.difficulty_G, gamed.not_gamed_G]


def test_too_few_rows_and_gamed_rows_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="4 rows; expected at least 5"):
        length_controlled(np.full(4, 0.5), np.zeros(4))
    with pytest.raises(ValueError, match="gamed rows need difficulties"):
        length_controlled(np.full(9, 0.5), np.zeros(9), None, planted().gamed)


def test_the_files_of_alpaca_eval_are_read_as_they_are(tmp_path) -> None:
    rows = planted()
    difficulties, gamed = write_planted(tmp_path)
    assert read_difficulties(difficulties, len(rows.win_N)) == pytest.approx(rows.difficulty_N, abs=1e-12)
    assert read_difficulties(gamed, len(rows.win_N)) == pytest.approx(rows.difficulty_N, abs=1e-12)
    for found, planted_values in zip(vars_of(read_gamed(gamed)), vars_of(rows.gamed), strict=True):
        assert found == pytest.approx(planted_values)


def test_bad_difficulty_files_are_named_with_line_and_column(tmp_path) -> None:
    difficulties, gamed = write_planted(tmp_path)
    with pytest.raises(UserError, match=r"3 of 203 rows have no difficulty \(first: index 200\)"):
        read_difficulties(difficulties, 203)
    for fewer in (difficulties, gamed):
        with pytest.raises(UserError, match="it has 200 difficulties and there are 197 rows; difficulties belong to"):
            read_difficulties(fewer, 197)
    with pytest.raises(UserError, match="cannot be read"):
        read_gamed(tmp_path / "none.csv")
    with pytest.raises(UserError, match="expected rows with the columns preference"):
        read_gamed(difficulties)
    text = gamed.read_text().splitlines()
    shifted = tmp_path / "shifted.csv"
    shifted.write_text("\n".join([text[0], text[1], text[2].replace(",0.", ",1.", 1)]))
    with pytest.raises(UserError, match=r"shifted.csv, line 3: preference is 1.\d+, expected a chance in \[0, 1\]"):
        read_gamed(shifted)
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join([text[0], text[1], text[2].replace(",", ",x", 2)]))
    with pytest.raises(UserError, match=r"broken.csv, line 3: preference is 'x"):
        read_gamed(broken)
