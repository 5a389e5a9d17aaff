"""Which of the K answers of a prompt are trained on.

Pure. The paper's objective uses all K answers; the published runs use only the best and the worst.
Shapes: K samples of one prompt; `target_K` is any number a sample is ranked by, larger is better. Rank by
targets *before* the clamp: clamped ones tie, and ties go to the first index. (The published code ranks by
mean score for SPPO too.)
"""

import torch
from torch import Tensor


def best_and_worst(target_K: Tensor) -> tuple[int, int]:
    """First index of the maximum and first index of the minimum: the published pick of chosen and rejected.

    Both are the same index if and only if all targets are equal; such a prompt says nothing and may be left
    out. Raises ValueError for a shape other than `[K]` with K >= 1 and for NaN.
    """
    value = _values(target_K)
    return value.index(max(value)), value.index(min(value))


def top_and_bottom(target_K: Tensor, n: int) -> tuple[list[int], list[int]]:
    """The n best answers, best first, and the n worst of the others, worst first; ties by the lower index.

    The two lists never share an answer, since that one would be trained on twice. For n = 1 they are
    `best_and_worst` unless all targets are equal. Raises ValueError unless 1 <= n <= K / 2, and as
    `best_and_worst` does.
    """
    value = _values(target_K)
    if not 1 <= n <= len(value) // 2:
        raise ValueError(f"n is {n} for K={len(value)} answers; expected 1..{len(value) // 2}: no answer twice")
    top = sorted(range(len(value)), key=lambda k: -value[k])[:n]
    others = [k for k in range(len(value)) if k not in top]
    return top, sorted(others, key=lambda k: value[k])[:n]


def _values(target_K: Tensor) -> list[float]:
    if target_K.ndim != 1 or target_K.shape[0] < 1:
        raise ValueError(f"targets have shape {list(target_K.shape)}; expected [K] with K of at least 1")
    if torch.isnan(target_K).any():
        where = int(torch.isnan(target_K).nonzero()[0])
        raise ValueError(f"target {where} is NaN; expected numbers that can be ranked")
    return [float(value) for value in target_K.tolist()]
