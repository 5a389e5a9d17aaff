"""Which answers are picked, among them the published picks.

Run: python -m pytest tests/gpo/training/test_selection.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpo.targets import Method, preference_targets, skew_part
from gpo.training.selection import best_and_worst, top_and_bottom

FIXTURE = Path(__file__).parents[4] / "shared" / "fixtures" / "gpo_targets.json"
CASES: list[dict[str, Any]] = json.loads(FIXTURE.read_text())["cases"] if FIXTURE.exists() else []

few_values = st.lists(st.integers(-2, 2), min_size=2, max_size=9)  # small integers: ties are common


def test_ties_go_to_the_first_index() -> None:
    assert best_and_worst(torch.tensor([1.0, 3.0, 0.0, 3.0, 0.0])) == (1, 2)
    assert best_and_worst(torch.zeros(4)) == (0, 0)


@given(few_values)
def test_best_and_worst_match_a_slow_loop(values: list[int]) -> None:
    best = worst = 0
    for k, value in enumerate(values):
        if value > values[best]:
            best = k
        if value < values[worst]:
            worst = k
    assert best_and_worst(torch.tensor(values, dtype=torch.float32)) == (best, worst)


@given(few_values, st.data())
def test_top_and_bottom_are_ordered_disjoint_and_bound_the_rest(values: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values) // 2))
    top, bottom = top_and_bottom(torch.tensor(values, dtype=torch.float64), n)
    assert len(set(top) | set(bottom)) == 2 * n
    assert [values[k] for k in top] == sorted(values, reverse=True)[:n]
    assert [values[k] for k in bottom] == sorted(values)[:n]
    for picked in (top, bottom):
        assert all(i < j for i, j in zip(picked, picked[1:], strict=False) if values[i] == values[j])


@given(few_values)
def test_one_top_and_one_bottom_are_best_and_worst_unless_all_are_equal(values: list[int]) -> None:
    target_K = torch.tensor(values, dtype=torch.float32)
    top, bottom = top_and_bottom(target_K, 1)
    if len(set(values)) > 1:
        assert (top[0], bottom[0]) == best_and_worst(target_K)
    else:
        assert (top, bottom) == ([0], [1])


@pytest.mark.parametrize("n", [0, 3])
def test_more_answers_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n is {n} for K=5 answers; expected 1..2"):
        top_and_bottom(torch.zeros(5), n)


def test_nan_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="target 1 is NaN"):
        best_and_worst(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match=r"shape \[2, 2\]; expected \[K\]"):
        best_and_worst(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"shape \[0\]"):
        best_and_worst(torch.zeros(0))


@pytest.mark.skipif(not CASES, reason=f"{FIXTURE} is absent")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_picks_by_unclamped_mean_score_match_the_published_ones(dtype: torch.dtype) -> None:
    for case in CASES:
        expected, score_KK = case["expected"]["pick"], skew_part(torch.tensor(case["raw"], dtype=dtype))
        target_K = preference_targets(score_KK, method="gpo-reference", tau=case["tau"], beta=case["beta"])
        best, worst = best_and_worst(target_K)
        assert (best, worst) == (expected["chosen"], expected["rejected"]), case["id"]
        assert (best == worst) is expected["degenerate"], case["id"]


@pytest.mark.skipif(not CASES, reason=f"{FIXTURE} is absent")
def test_targets_of_the_picks_match_what_the_published_loss_regresses_on() -> None:
    for case in CASES:
        score_KK = skew_part(torch.tensor(case["raw"], dtype=torch.float64))
        checks: list[tuple[Method, float | None, str]] = [
            ("gpo-reference", case["clamp"], "score_variant"),
            ("sppo-reference", None, "prob_variant"),
        ]
        for method, clamp, variant in checks:
            pick = case["expected"]["pick"]
            target_K = preference_targets(score_KK, method=method, tau=case["tau"], beta=case["beta"], clamp=clamp)
            found = [target_K[pick["chosen"]].item(), target_K[pick["rejected"]].item()]
            expected = [pick[variant]["target_win"], pick[variant]["target_lose"]]
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-7), case["id"]


@pytest.mark.skipif(not CASES, reason=f"{FIXTURE} is absent")
def test_best_and_worst_lie_in_the_sets_of_extremes_for_every_ranking() -> None:
    for case in CASES:
        raw_KK, expected = torch.tensor(case["raw"], dtype=torch.float64), case["expected"]
        checks: list[tuple[Tensor, Method, str]] = [
            (raw_KK, "gpo", "s_hat"),
            (skew_part(raw_KK), "gpo-reference", "reference_win"),
            (raw_KK, "sppo", "corrected_prob"),
        ]
        for score_KK, method, field in checks:
            best, worst = best_and_worst(preference_targets(score_KK, method=method, tau=case["tau"], beta=1.0))
            assert best in expected[f"{field}_top_set"], case["id"]
            assert worst in expected[f"{field}_bottom_set"], case["id"]
