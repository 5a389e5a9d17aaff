"""Numbers of a pairwise evaluation from the preferences alone, as AlpacaEval defines them.

Pure: arrays in, numbers out. Shapes: N judged rows. Rates are in [0, 1], lengths in characters (as AlpacaEval's).
`win_N` is the chance that the evaluated model's answer is preferred to the baseline's; 1/2 is a tie.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LENGTH_RATIOS = (0.5, 0.8, 1.25, 2.0)
"""Edges of the buckets: characters of the model's answer over the baseline's."""


@dataclass(frozen=True)
class PairNumbers:
    """Win rate of a model against a baseline over N rows."""

    win_rate: float
    standard_error: float | None
    """Of the mean over rows, which are taken as independent; None for a single row."""
    discrete_win_rate: float
    """A row counts 1 above one half, 0 below, and 1/2 at exactly one half."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n: int


@dataclass(frozen=True)
class LengthBucket:
    """Rows whose answers differ alike in length."""

    ratio_from: float
    ratio_below: float | None
    """None: no upper edge."""
    n: int
    win_rate: float | None
    """None where there is no row."""
    standard_error: float | None


def pair_numbers(win_N: FloatArray) -> PairNumbers:
    """Mean, standard error and counts; raises ValueError without rows or outside [0, 1]."""
    if win_N.size == 0 or not ((win_N >= 0) & (win_N <= 1)).all():
        raise ValueError("expected at least one preference, all in [0, 1]")
    wins, losses = int((win_N > 0.5).sum()), int((win_N < 0.5).sum())
    draws = len(win_N) - wins - losses
    return PairNumbers(
        win_rate=float(win_N.mean()),
        standard_error=standard_error(win_N),
        discrete_win_rate=(wins + draws / 2) / len(win_N),
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n=len(win_N),
    )


def standard_error(values_N: FloatArray) -> float | None:
    """Of the mean, with N - 1 in the variance; None for fewer than two values."""
    return float(values_N.std(ddof=1) / np.sqrt(len(values_N))) if len(values_N) > 1 else None


def by_length(win_N: FloatArray, model_N: FloatArray, baseline_N: FloatArray) -> list[LengthBucket]:
    """Win rates by how much longer the model's answer is; two empty answers are of one length."""
    both_empty_N = (model_N == 0) & (baseline_N == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_N = np.where(both_empty_N, 1.0, model_N / baseline_N)
    edges = [0.0, *LENGTH_RATIOS, np.inf]
    buckets = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside_N = (ratio_N >= low) & ((ratio_N < high) | (high == np.inf))
        chosen = win_N[inside_N]
        buckets.append(
            LengthBucket(
                ratio_from=low,
                ratio_below=None if high == np.inf else high,
                n=len(chosen),
                win_rate=float(chosen.mean()) if len(chosen) else None,
                standard_error=standard_error(chosen),
            )
        )
    return buckets
