"""What a histogram and a correlation need, in numpy alone. Shapes: N answers, P prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BINS = 40


def shared_edges(groups: Sequence[FloatArray], bins: int = BINS) -> FloatArray:
    """Edges [bins + 1] over the range of all groups, so that their histograms can be compared."""
    filled = [group for group in groups if len(group)]
    low, high = (min(g.min() for g in filled), max(g.max() for g in filled)) if filled else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def histogram(values_N: FloatArray, edges: FloatArray) -> dict[str, Any]:
    """Counts between the edges, with number, mean, standard deviation and quantiles of the values themselves."""
    counts, _ = np.histogram(values_N, edges)
    quantiles = np.quantile(values_N, [0.05, 0.5, 0.95]) if len(values_N) else [0.0, 0.0, 0.0]
    return {
        "counts": counts.tolist(),
        "values": len(values_N),
        "mean": float(values_N.mean()) if len(values_N) else 0.0,
        "deviation": float(values_N.std()) if len(values_N) else 0.0,
        "p5": float(quantiles[0]),
        "median": float(quantiles[1]),
        "p95": float(quantiles[2]),
    }


def correlation_within(prompt_N: NDArray[np.int64], x_N: FloatArray, y_N: FloatArray) -> float | None:
    """Pearson correlation of x and y after taking each prompt's own mean off both; None where nothing varies.

    `prompt_N`: a number 0 .. P - 1 for each answer. It asks whether, among answers to the same prompt, more of x goes
    with more of y; differences between prompts do not enter.
    """
    if len(x_N) == 0:
        return None
    count_P = np.bincount(prompt_N)
    dx_N = x_N - (np.bincount(prompt_N, x_N) / count_P)[prompt_N]
    dy_N = y_N - (np.bincount(prompt_N, y_N) / count_P)[prompt_N]
    scale = float(np.sqrt((dx_N**2).sum() * (dy_N**2).sum()))
    return float((dx_N * dy_N).sum() / scale) if scale > 1e-12 else None
