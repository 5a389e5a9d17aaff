"""Win rates, cycles, divergence and paired accuracy against slow loops and known distributions.

Run: python -m pytest tests/gpo/test_winrate.py
"""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.evaluation.winrate import accuracy_difference_ci, cyclic_share, kl_nats, win_rate

seeds = st.integers(0, 2**31)


def ragged(seed: int, prompts: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((rng.integers(1, 4), rng.integers(1, 5))).round(1) for _ in range(prompts)]


@given(seeds, st.integers(1, 12), st.booleans())
def test_win_rate_is_the_mean_over_prompts_of_the_mean_over_pairs(seed: int, prompts: int, hard: bool) -> None:
    tables = ragged(seed, prompts)
    means = []
    for table in tables:
        values = table.ravel().tolist()
        if hard:
            values = [1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in values]
        means.append(sum(values) / len(values))
    found = win_rate(tables, hard=hard)
    assert found.win_rate == pytest.approx(sum(means) / prompts)
    assert found.n_prompts == prompts
    assert 0.0 <= found.ci95[0] <= found.ci95[1] <= 1.0


def test_a_tie_is_half_a_hard_win() -> None:
    assert win_rate([[[0.5, 0.51]], [[0.49]]], hard=True).win_rate == pytest.approx((0.75 + 0.0) / 2)


def test_the_interval_is_a_function_of_data_and_seed() -> None:
    tables = ragged(0, 30)
    assert win_rate(tables, seed=1) == win_rate(tables, seed=1)
    assert win_rate(tables, seed=1).ci95 != win_rate(tables, seed=2).ci95


def test_the_interval_has_the_width_of_the_normal_approximation_over_prompts() -> None:
    # Four equal answers a prompt: an interval over answers would come out half as wide.
    p_B = np.random.default_rng(0).random(400)
    low, high = win_rate([np.full((2, 2), p) for p in p_B]).ci95
    assert high - low == pytest.approx(2 * 1.96 * p_B.std() / np.sqrt(400), rel=0.1)


def test_the_interval_does_not_depend_on_memory_for_many_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpo.evaluation.winrate._DRAWS_AT_ONCE", 1000)
    found = win_rate(np.full((300, 1, 1), 0.25))
    assert found.ci95 == (0.25, 0.25)


def test_probabilities_that_are_none_are_refused_with_their_prompt() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        win_rate([])
    with pytest.raises(ValueError, match="prompt 1 has no probabilities"):
        win_rate([[[0.5]], [[]]])
    with pytest.raises(ValueError, match=r"prompt 0 holds 1.5; expected numbers in \[0, 1\]"):
        win_rate([[[1.5]]])
    with pytest.raises(ValueError, match="prompt 0 holds nan"):
        win_rate([[[np.nan]]])


@given(seeds, st.integers(1, 3), st.integers(1, 7))
def test_cyclic_share_matches_a_loop_over_triples(seed: int, tables: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(-1, 2, (size, size)) for _ in range(tables)]
    score_TKK = [table - table.T for table in drawn]
    cycles = decided = 0
    for score in score_TKK:
        for i, j, k in itertools.combinations(range(size), 3):
            signs = {int(np.sign(score[a, b])) for a, b in ((i, j), (j, k), (k, i))}
            decided += 0 not in signs
            cycles += signs in ({1}, {-1})
    assert cyclic_share(score_TKK) == (cycles / decided if decided else None)


def test_scores_and_probabilities_have_the_same_cycles() -> None:
    score = np.array([[0, 2, -1], [-2, 0, 3], [1, -3, 0]], dtype=float)
    assert cyclic_share([score]) == cyclic_share([1 / (1 + np.exp(-score))]) == 1.0


def test_rewards_have_no_cycles_and_ties_are_not_decided() -> None:
    reward_K = np.array([0.3, -1.0, 2.0, 0.0])
    assert cyclic_share([reward_K[:, None] - reward_K]) == 0.0
    assert cyclic_share([np.zeros((4, 4)), np.zeros((2, 2))]) is None
    assert cyclic_share([]) is None


def test_tables_without_an_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"table 0 has shape \[2, 3\]"):
        cyclic_share([np.zeros((2, 3))])
    with pytest.raises(ValueError, match="table 1 holds NaN"):
        cyclic_share([np.zeros((1, 1)), np.full((1, 1), np.nan)])


def test_kl_is_the_mean_difference_with_its_standard_error() -> None:
    found = kl_nats([-1.0, -2.0, -4.0], [-2.0, -2.0, -9.0])
    assert found.kl_nats == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(np.std([1.0, 0.0, 5.0], ddof=1) / np.sqrt(3))
    assert found.n_answers == 3
    assert kl_nats([-1.0], [-1.0]).standard_error is None


def test_kl_of_sampled_answers_agrees_with_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    policy, start = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    drawn = rng.choice(3, size=20_000, p=policy)
    found = kl_nats(np.log(policy)[drawn], np.log(start)[drawn])
    assert found.standard_error is not None
    assert abs(found.kl_nats - (policy * np.log(policy / start)).sum()) < 4 * found.standard_error


def test_kl_refuses_answers_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[1\]"):
        kl_nats([0.0, 0.0], [0.0])
    with pytest.raises(ValueError, match="answer 1 has a log-probability that is not finite"):
        kl_nats([0.0, 0.0], [0.0, -np.inf])


def test_accuracy_difference_is_paired() -> None:
    right = np.random.default_rng(0).integers(0, 2, 200)
    found = accuracy_difference_ci(right, right, range(200))
    assert (found.difference, found.ci95) == (0.0, (0.0, 0.0))
    assert (found.n_pairs, found.n_groups) == (200, 200)


def test_accuracy_difference_draws_whole_groups() -> None:
    rng = np.random.default_rng(1)
    a_G, b_G = rng.integers(0, 2, 100), rng.integers(0, 2, 100)
    groups = [f"prompt-{g}" for g in range(100)]
    once = accuracy_difference_ci(a_G, b_G, groups)
    nine = accuracy_difference_ci(np.repeat(a_G, 9), np.repeat(b_G, 9), np.repeat(groups, 9))
    apart = accuracy_difference_ci(np.repeat(a_G, 9), np.repeat(b_G, 9), range(900))
    assert nine.difference == pytest.approx(a_G.mean() - b_G.mean())
    assert nine.ci95 == pytest.approx(once.ci95)  # nine copies of a pair tell no more than one
    assert apart.ci95[1] - apart.ci95[0] == pytest.approx((once.ci95[1] - once.ci95[0]) / 3, rel=0.15)


def test_accuracy_difference_weighs_each_pair_equally_in_groups_of_different_size() -> None:
    found = accuracy_difference_ci([1, 1, 1, 0], [0, 0, 0, 0.5], ["a", "a", "a", "b"])
    assert found.difference == pytest.approx((3 - 0.5) / 4)
    assert found.ci95 == (-0.5, 1.0)  # a resample may draw one of the two groups twice


def test_accuracy_difference_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[2\] outcomes and 1 groups"):
        accuracy_difference_ci([1, 0], [1, 0], ["a"])
    with pytest.raises(ValueError, match=r"correct_b holds 2.0"):
        accuracy_difference_ci([1, 0], [1, 2], ["a", "b"])


def test_winrate_does_not_import_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; import gpo.evaluation.winrate"
    subprocess.run([sys.executable, "-c", program], check=True)
