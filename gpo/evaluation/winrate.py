"""Win rates, cycles, divergence and paired accuracy, each with its uncertainty.

numpy only, so that reports and `gpo eval` need no torch. Rates and shares are in [0, 1], log-probabilities in
nats. Shapes: B prompts, K candidate answers, M opponent answers, N rows, G groups.

Intervals are 95 % percentile bootstraps over prompts or groups, not over answers: answers to one prompt are
correlated. They are a function of data and seed alone. One prompt or group gives an interval of width zero,
which means unknown, not certain.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

RESAMPLES = 2000
_DRAWS_AT_ONCE = 4_000_000
"""Bound on the drawn indices held in memory (8 bytes each) whatever the number of prompts."""


@dataclass(frozen=True)
class WinRate:
    """Mean over prompts of the chance that a candidate answer is preferred to an opponent's."""

    win_rate: float
    ci95: tuple[float, float]
    n_prompts: int


@dataclass(frozen=True)
class Divergence:
    """KL(policy || start) in nats per answer; `standard_error` is None for a single answer."""

    kl_nats: float
    standard_error: float | None
    n_answers: int


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of a minus accuracy of b on the same pairs, in [-1, 1]."""

    difference: float
    ci95: tuple[float, float]
    n_pairs: int
    n_groups: int


def win_rate(probability: Sequence[ArrayLike] | NDArray[Any], *, hard: bool = False, seed: int = 0) -> WinRate:
    """Win rate from one array `[K, M]` a prompt (sizes may differ) of P(candidate preferred to opponent).

    Each prompt counts the same: (1/B) sum_b mean_km p_bkm. With `hard`, p counts 1 above 0.5, 0 below, and
    one half at exactly 0.5.
    Raises ValueError for no prompts, an empty array, or entries outside [0, 1], and names the prompt.
    """
    if len(probability) == 0:
        raise ValueError("no prompts; expected at least one array of probabilities")
    mean_B = np.array([_prompt_win_rate(p_KM, index, hard) for index, p_KM in enumerate(probability)])
    ci95 = _bootstrap_ratio(mean_B, np.ones_like(mean_B), seed)
    return WinRate(float(mean_B.mean()), ci95, len(mean_B))


def cyclic_share(tables: Sequence[ArrayLike]) -> float | None:
    """Share of decided triples of answers, pooled over tables `[K, K]`, that form a cycle i > j > k > i.

    i beats j where entry [i, j] exceeds entry [j, i], so scores, log-odds and probabilities all serve; equal
    entries are a tie, and a triple is decided if none of its three pairs is tied. None if no triple is
    decided (K < 3, or too many ties).
    A share of 1/4 is what coin tosses give. Raises ValueError for a table that is not square or holds NaN.
    """
    alike: dict[int, list[np.ndarray]] = defaultdict(list)
    for index, table in enumerate(tables):
        score_KK = np.asarray(table, dtype=np.float64)
        if score_KK.ndim != 2 or score_KK.shape[0] != score_KK.shape[1]:
            raise ValueError(f"table {index} has shape {list(score_KK.shape)}; expected [K, K]")
        if np.isnan(score_KK).any():
            raise ValueError(f"table {index} holds NaN; expected numbers")
        alike[len(score_KK)].append(score_KK)
    cycles, decided = 0, 0
    for scores in alike.values():
        score_BKK = np.stack(scores)
        beats_BKK = (score_BKK > score_BKK.swapaxes(-1, -2)).astype(np.float64)
        # Closed walks of length 3: a cycle is counted from each of its 3 corners, a triangle also both ways.
        cycles += _closed_walks(beats_BKK) // 3
        decided += _closed_walks(beats_BKK + beats_BKK.swapaxes(-1, -2)) // 6
    return cycles / decided if decided else None


def _closed_walks(edge_BKK: np.ndarray) -> int:
    """How many walks of three steps end where they began, in all graphs together; exact below 2^53."""
    return int(((edge_BKK @ edge_BKK) * edge_BKK.swapaxes(-1, -2)).sum())


def kl_nats(logp_policy: ArrayLike, logp_start: ArrayLike) -> Divergence:
    """KL(policy || start) = E_{y ~ policy}[log policy(y) - log start(y)] with its standard error.

    `logp_*` `[N]`: log-probabilities of the same answers, *sampled from the policy*, in nats. The standard
    error takes answers as independent; with several answers a prompt it is too small. The estimate may fall
    below 0 by chance.
    Raises ValueError for different shapes, no answers, or values that are not finite.
    """
    policy_N, start_N = np.asarray(logp_policy, dtype=np.float64), np.asarray(logp_start, dtype=np.float64)
    if policy_N.ndim != 1 or policy_N.shape != start_N.shape or policy_N.size == 0:
        raise ValueError(
            f"found shapes {list(policy_N.shape)} and {list(start_N.shape)}; expected the same [N], N >= 1"
        )
    difference_N = policy_N - start_N
    if not np.isfinite(difference_N).all():
        raise ValueError(f"answer {int(np.argmin(np.isfinite(difference_N)))} has a log-probability that is not finite")
    count = len(difference_N)
    error = float(difference_N.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return Divergence(float(difference_N.mean()), error, count)


def accuracy_difference_ci(
    correct_a: ArrayLike, correct_b: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, seed: int = 0
) -> AccuracyDifference:
    """Accuracy of model a minus that of model b on the same pairs, with a paired bootstrap over groups.

    `correct_a`, `correct_b` `[N]`: 1 right, 0 wrong, 0.5 tie, for the same pair in the same place; `groups`
    `[N]`: what is drawn together (the prompt a pair belongs to), any hashable labels. Each pair counts the
    same, so a resample is the ratio of summed differences to summed pairs of the drawn groups.
    Raises ValueError for lengths that differ, no pairs, or entries outside [0, 1].
    """
    a_N, b_N = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a_N.ndim != 1 or a_N.shape != b_N.shape or len(groups) != len(a_N) or len(a_N) == 0:
        raise ValueError(
            f"found {list(a_N.shape)} and {list(b_N.shape)} outcomes and {len(groups)} groups; expected one N >= 1"
        )
    _check_unit_interval(a_N, "correct_a")
    _check_unit_interval(b_N, "correct_b")
    number: dict[Any, int] = {}
    group_N = np.array([number.setdefault(label, len(number)) for label in groups])
    difference_G = np.bincount(group_N, weights=a_N - b_N).astype(np.float64)
    pairs_G = np.bincount(group_N).astype(np.float64)
    ci95 = _bootstrap_ratio(difference_G, pairs_G, seed)
    return AccuracyDifference(float((a_N - b_N).mean()), ci95, len(a_N), len(number))


def _prompt_win_rate(probability: ArrayLike, index: int, hard: bool) -> float:
    p_KM = np.asarray(probability, dtype=np.float64)
    if p_KM.size == 0:
        raise ValueError(f"prompt {index} has no probabilities; expected at least one")
    _check_unit_interval(p_KM, f"prompt {index}")
    if hard:
        p_KM = (p_KM > 0.5) + 0.5 * (p_KM == 0.5)
    return float(p_KM.mean())


def _check_unit_interval(values: FloatArray, name: str) -> None:
    inside = (values >= 0) & (values <= 1)  # NaN is inside nothing
    if not inside.all():
        raise ValueError(f"{name} holds {values[~inside].flat[0]}; expected numbers in [0, 1]")


def resampled_means(values_BN: FloatArray, seed: int) -> FloatArray:
    """Means_RN over B units drawn with replacement, the very draws that `win_rate` takes its interval from."""
    units = len(values_BN)
    means = []
    for picked in _draws(units, seed):
        count_RB = np.stack([np.bincount(row, minlength=units) for row in picked])
        means.append(count_RB @ values_BN / units)
    return np.concatenate(means)


def _bootstrap_ratio(numerator_G: FloatArray, denominator_G: FloatArray, seed: int) -> tuple[float, float]:
    """Percentile interval of sum(numerator) / sum(denominator), the G units drawn with replacement."""
    ratios = [numerator_G[picked].sum(1) / denominator_G[picked].sum(1) for picked in _draws(len(numerator_G), seed)]
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return float(low), float(high)


def _draws(units: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Drawn indices [draws, units], RESAMPLES draws in all, a bounded number at a time."""
    rng = np.random.default_rng(seed)
    left = RESAMPLES
    while left:
        draws = min(left, max(1, _DRAWS_AT_ONCE // units))
        yield rng.integers(units, size=(draws, units))
        left -= draws
