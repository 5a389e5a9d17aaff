"""Targets against a slow double loop, as properties, and against the numbers of the published code.

Run: python -m pytest tests/gpo/test_targets.py
"""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpo.targets import (
    Method,
    optimistic_weights,
    preference_targets,
    skew_part,
)

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "gpo_targets.json"
METHODS = get_args(Method)
CASES: list[dict[str, Any]] = json.loads(FIXTURE.read_text())["cases"] if FIXTURE.exists() else []
per_case = pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])

seeds = st.integers(0, 2**31)
sizes = st.integers(2, 9)
methods = st.sampled_from(METHODS)


def random_table(seed: int, samples: int, answers: int) -> Tensor:
    return torch.randn(samples, answers, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def skew_table(seed: int, samples: int) -> Tensor:
    return skew_part(random_table(seed, samples, samples))


def slow_targets(
    score: list[list[float]], method: str, tau: float, beta: float, weight: list[float], exclude_self: bool
) -> list[float]:
    targets = []
    for i, row in enumerate(score):
        total = weights = 0.0
        for m, s in enumerate(row):
            if exclude_self and i == m:
                continue
            log_odds = (2 * s if "reference" in method else s) / tau
            total += weight[m] * (log_odds if method.startswith("gpo") else 1 / (1 + math.exp(-log_odds)) - 0.5)
            weights += weight[m]
        targets.append(total / weights / beta)
    return targets


@given(seeds, sizes, methods, st.booleans(), st.booleans())
def test_targets_match_a_slow_double_loop(
    seed: int, samples: int, method: Method, weighted: bool, exclude_self: bool
) -> None:
    answers = samples if exclude_self else samples + 2
    score_KM = random_table(seed, samples, answers)
    weight_M = random_table(seed + 1, 1, answers)[0].abs() + 0.01 if weighted else None
    found = preference_targets(score_KM, method=method, tau=0.3, beta=0.7, weight_M=weight_M, exclude_self=exclude_self)
    weight = [1.0] * answers if weight_M is None else weight_M.tolist()
    expected = slow_targets(score_KM.tolist(), method, 0.3, 0.7, weight, exclude_self)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@given(seeds, sizes, methods)
def test_permuting_the_answers_permutes_the_targets(seed: int, samples: int, method: Method) -> None:
    score_KK = random_table(seed, samples, samples)
    order_K = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    target_K = preference_targets(score_KK, method=method, tau=0.1, beta=1.0)
    permuted_K = preference_targets(score_KK[order_K][:, order_K], method=method, tau=0.1, beta=1.0)
    torch.testing.assert_close(permuted_K, target_K[order_K])


@given(seeds, sizes, methods)
def test_targets_of_a_skew_table_sum_to_zero(seed: int, samples: int, method: Method) -> None:
    target_K = preference_targets(skew_table(seed, samples), method=method, tau=0.1, beta=0.1)
    assert abs(target_K.sum().item()) < 1e-10


@given(seeds, sizes, methods, st.floats(-50, 50))
def test_shifting_all_bradley_terry_rewards_leaves_the_targets(
    seed: int, samples: int, method: Method, shift: float
) -> None:
    reward_K = random_table(seed, 1, samples)[0]
    shifted_K = reward_K + shift
    target_K = preference_targets(reward_K[:, None] - reward_K, method=method, tau=1.0, beta=1.0)
    again_K = preference_targets(shifted_K[:, None] - shifted_K, method=method, tau=1.0, beta=1.0)
    torch.testing.assert_close(again_K, target_K, rtol=0, atol=1e-10)


@given(seeds, sizes, st.sampled_from(["gpo", "sppo"]))
def test_excluding_the_self_score_of_a_skew_table_only_rescales(seed: int, samples: int, method: Method) -> None:
    score_KK = skew_table(seed, samples)
    with_self_K = preference_targets(score_KK, method=method, tau=0.1, beta=1.0)
    without_K = preference_targets(score_KK, method=method, tau=0.1, beta=1.0, exclude_self=True)
    torch.testing.assert_close(without_K, with_self_K * samples / (samples - 1))


@given(seeds, sizes, st.sampled_from(["gpo", "sppo"]))
def test_log_z_mean_makes_targets_against_any_baseline_sum_to_zero(seed: int, samples: int, method: Method) -> None:
    score_KM = random_table(seed, samples, 4) - 3.0  # a baseline stronger than the policy
    target_K = preference_targets(score_KM, method=method, tau=0.1, beta=0.1, log_z="mean")
    assert abs(target_K.sum().item()) < 1e-9
    plain_K = preference_targets(score_KM, method=method, tau=0.1, beta=0.1)
    torch.testing.assert_close(target_K, plain_K - plain_K.mean())


@given(seeds, sizes)
def test_log_z_logmeanexp_makes_the_wanted_ratios_average_to_one(seed: int, samples: int) -> None:
    target_K = preference_targets(random_table(seed, samples, 3), method="gpo", tau=0.5, beta=1.0, log_z="logmeanexp")
    assert target_K.exp().mean().item() == pytest.approx(1.0)


def test_log_z_logmeanexp_survives_targets_of_ten_thousand_nats() -> None:
    score_KM = torch.tensor([[10.0], [-10.0]])
    target_K = preference_targets(score_KM, method="gpo", tau=1.0, beta=0.001, log_z="logmeanexp")
    torch.testing.assert_close(target_K, torch.tensor([math.log(2), -20000 + math.log(2)]), rtol=0, atol=0.01)


def test_two_answers_get_half_the_pair_score_and_its_negative() -> None:
    score_KK = torch.tensor([[0.0, 0.6], [-0.6, 0.0]], dtype=torch.float64)
    target_K = preference_targets(score_KK, method="gpo", tau=0.1, beta=2.0)
    torch.testing.assert_close(target_K, torch.tensor([1.5, -1.5], dtype=torch.float64))


def test_weights_count_by_their_ratio_and_equal_ones_change_nothing() -> None:
    score_KM = random_table(1, 4, 3)
    plain_K = preference_targets(score_KM, method="gpo", tau=0.1, beta=1.0)
    equal_K = preference_targets(score_KM, method="gpo", tau=0.1, beta=1.0, weight_M=torch.full((3,), 7.0))
    one_K = preference_targets(score_KM, method="gpo", tau=0.1, beta=1.0, weight_M=torch.tensor([0.0, 0.2, 0.0]))
    torch.testing.assert_close(equal_K, plain_K)
    torch.testing.assert_close(one_K, score_KM[:, 1] / 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_tables_gives_the_targets_of_each_table(method: Method) -> None:
    score_BKK = random_table(2, 3 * 4, 4).reshape(3, 4, 4)
    weight_BM = random_table(3, 3, 4).abs()
    for weights in (None, weight_BM[0], weight_BM):
        found_BK = preference_targets(
            score_BKK, method=method, tau=0.1, beta=1.0, weight_M=weights, exclude_self=True, clamp=3.0
        )
        for b in range(3):
            weight_M = weights[b] if weights is not None and weights.ndim == 2 else weights
            alone_K = preference_targets(
                score_BKK[b],
                method=method,
                tau=0.1,
                beta=1.0,
                weight_M=weight_M,
                exclude_self=True,
                clamp=3.0,
            )
            torch.testing.assert_close(found_BK[b], alone_K)


def test_clamp_bounds_the_target_after_log_z_and_none_does_not() -> None:
    score_KM = torch.tensor([[9.0], [5.0], [1.0]])
    centred_K = preference_targets(score_KM, method="gpo", tau=1.0, beta=1.0, log_z="mean", clamp=2.0)
    assert centred_K.tolist() == [2.0, 0.0, -2.0]
    assert preference_targets(score_KM, method="gpo", tau=1.0, beta=1.0).tolist() == [9.0, 5.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_out_is_dtype_in_with_float32_arithmetic_for_half_precision(dtype: torch.dtype) -> None:
    score_KK = skew_table(4, 5).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    target_K = preference_targets(score_KK, method="sppo", tau=0.1, beta=0.01)
    assert target_K.dtype == dtype
    torch.testing.assert_close(
        target_K, preference_targets(score_KK.to(wide), method="sppo", tau=0.1, beta=0.01).to(dtype)
    )


@given(seeds, sizes, st.sampled_from(["gpo", "sppo"]))
def test_optimistic_is_twice_the_self_target_minus_the_previous_one(seed: int, samples: int, method: Method) -> None:
    self_KK, previous_KM = skew_table(seed, samples), random_table(seed + 1, samples, 3)
    weight_M = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found_K = preference_targets(
        torch.cat([self_KK, previous_KM], dim=1),
        method=method,
        tau=0.5,
        beta=0.2,
        weight_M=optimistic_weights(samples, weight_M),
    )
    ours_K = preference_targets(self_KK, method=method, tau=0.5, beta=0.2)
    theirs_K = preference_targets(previous_KM, method=method, tau=0.5, beta=0.2, weight_M=weight_M)
    torch.testing.assert_close(found_K, 2 * ours_K - theirs_K, rtol=1e-9, atol=1e-9)


SQUARE = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("score", "options", "message"),
    [
        (torch.zeros(3), {}, r"shape \[3\]; expected \[..., K, M\]"),
        (torch.zeros(3, 0), {}, r"shape \[3, 0\]"),
        (torch.zeros(3, 3, dtype=torch.int64), {}, r"dtype torch.int64; expected a floating"),
        (torch.tensor([[0.0, math.nan]]), {}, r"holds nan at \[0, 1\]"),
        (SQUARE, {"method": "dpo"}, "method is 'dpo'; expected one of gpo, sppo"),
        (SQUARE, {"log_z": "max"}, "log_z is 'max'; expected one of zero, mean, logmeanexp"),
        (SQUARE, {"method": "gpo-reference", "log_z": "mean"}, "never centres"),
        (SQUARE, {"tau": 0.0}, "tau is 0.0; expected a positive"),
        (SQUARE, {"beta": -1.0}, "beta is -1.0; expected a positive"),
        (SQUARE, {"clamp": 0.0}, "clamp is 0.0; expected a positive"),
        (SQUARE, {"weight_M": torch.ones(2)}, r"weight_M has shape \[2\]; expected \[3\]"),
        (SQUARE, {"weight_M": torch.zeros(3)}, "total weight of 0; expected a positive"),
        (
            SQUARE,
            {"weight_M": torch.tensor([1.0, math.inf, 1.0])},
            "weight_M holds a value that is not finite",
        ),
        (SQUARE, {"weight_M": torch.tensor([1.0, 0.0, 0.0]), "exclude_self": True}, "total weight of 0"),
        (torch.zeros(3, 2), {"exclude_self": True}, "K=3, M=2"),
        (torch.zeros(1, 1), {"exclude_self": True}, "expected K of at least 2"),
        (torch.full((1, 1), 9.0, dtype=torch.float16), {"beta": 1e-4}, "overflow torch.float16"),
    ],
)
def test_a_fault_is_named_with_what_was_found_and_expected(
    score: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preference_targets(score, **{"method": "gpo", "tau": 1.0, "beta": 1.0, **options})


def test_helpers_refuse_what_they_cannot_weigh_or_transpose() -> None:
    with pytest.raises(ValueError, match="samples is 0"):
        optimistic_weights(0, torch.ones(2))
    with pytest.raises(ValueError, match="nonnegative"):
        optimistic_weights(2, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="floating"):
        optimistic_weights(2, torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"found shape \[2, 3\]"):
        skew_part(torch.zeros(2, 3))


@pytest.mark.skipif(not CASES, reason=f"{FIXTURE} is absent")
def test_the_fixture_holds_all_its_cases() -> None:
    assert len(CASES) == 17


@per_case
def test_targets_of_the_paper_match_the_fixture(case: dict[str, Any]) -> None:
    score_KK, expected = torch.tensor(case["raw"], dtype=torch.float64), case["expected"]
    checks: list[tuple[Method, float, str]] = [
        ("gpo", case["tau"], "paper_target_from_score_over_tau"),
        ("gpo", 1.0, "paper_target_from_raw"),
        ("sppo", case["tau"], "corrected_sppo_target"),
    ]
    for method, tau, field in checks:
        found_K = preference_targets(score_KK, method=method, tau=tau, beta=case["beta"])
        assert found_K.tolist() == pytest.approx(expected[field], rel=1e-9, abs=1e-7), field


@per_case
def test_targets_of_the_published_code_match_the_fixture(case: dict[str, Any]) -> None:
    # skew_part changes only the one table that is not skew-symmetric: the published code uses S - S^T there.
    score_KK, expected = skew_part(torch.tensor(case["raw"], dtype=torch.float64)), case["expected"]
    checks: list[tuple[Method, float | None, str]] = [
        ("gpo-reference", None, "reference_target_unclamped"),
        ("gpo-reference", case["clamp"], "reference_target"),
        ("sppo-reference", None, "reference_sppo_target"),
    ]
    for method, clamp, field in checks:
        found_K = preference_targets(score_KK, method=method, tau=case["tau"], beta=case["beta"], clamp=clamp)
        assert found_K.tolist() == pytest.approx(expected[field], rel=1e-9, abs=1e-7), field


@per_case
def test_means_and_probabilities_match_the_fixture(case: dict[str, Any]) -> None:
    raw_KK, expected = torch.tensor(case["raw"], dtype=torch.float64), case["expected"]
    checks: list[tuple[Tensor, Method, float, float, str]] = [
        (raw_KK, "gpo", 1.0, 0.0, "s_hat_raw"),
        (raw_KK, "gpo", case["tau"], 0.0, "s_hat_over_tau"),
        (raw_KK, "sppo", case["tau"], 0.5, "corrected_sppo_prob_mean"),
        (skew_part(raw_KK), "gpo-reference", case["tau"], 0.0, "reference_win"),
        (skew_part(raw_KK), "sppo-reference", case["tau"], 0.5, "reference_sppo_prob_mean"),
    ]
    for score_KK, method, tau, offset, field in checks:
        found_K = preference_targets(score_KK, method=method, tau=tau, beta=1.0) + offset
        assert found_K.tolist() == pytest.approx(expected[field], rel=1e-9, abs=1e-10), field
