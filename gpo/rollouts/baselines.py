"""Which older policies stand in a baseline, and with what weights.

Pure. Policies are numbered by the iteration that published them, 0 is the start; iteration t samples from policy t - 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpo.config.baseline import BaselineConfig
from gpo.targets import optimistic_weights


def older_policies(baseline: BaselineConfig, iteration: int) -> dict[int, float]:
    """Policy -> weight, summing to 1, for an iteration (the first is 1); empty where none is needed.

    In the first iteration the start is the only policy there is: `previous` then is a second draw from it, and
    `optimistic` is plain `self`, which is how optimistic mirror descent begins.
    """
    last = max(iteration - 2, 0)
    if baseline.kind == "initial":
        return {0: 1.0}
    if baseline.kind not in ("previous", "optimistic") or (baseline.kind == "optimistic" and iteration == 1):
        return {}
    if baseline.past == "last":
        return {last: 1.0}
    weights = {policy: baseline.decay ** (last - policy) for policy in range(last + 1)}
    total = sum(weights.values())
    return {policy: weight / total for policy, weight in weights.items()}


def includes_own(baseline: BaselineConfig) -> bool:
    """Whether the K samples themselves are among the baseline answers."""
    return baseline.kind in ("self", "optimistic")


def column_weights(samples: int, answers: Sequence[int], weights: Sequence[float], own: bool) -> Tensor:
    """Weights `[M]` of the columns of a table, float64, summing to 1.

    `answers` and `weights`: of each policy, or of the data set, how many columns and its share. With `own` the table
    begins with the K samples: alone they share all the weight; with others they count twice and the others are
    subtracted (optimistic).
    """
    if len(answers) != len(weights):
        raise ValueError(f"{len(answers)} counts and {len(weights)} weights; expected one each")
    shares = [
        torch.full((count,), weight / count, dtype=torch.float64)
        for count, weight in zip(answers, weights, strict=True)
    ]
    if not own:
        return torch.cat(shares)
    if not shares:
        return torch.full((samples,), 1 / samples, dtype=torch.float64)
    return optimistic_weights(samples, torch.cat(shares))
