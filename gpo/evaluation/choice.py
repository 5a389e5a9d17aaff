"""Which checkpoint of a run to take: the last, the best against the start, or the Nash mixture's heaviest.

Pure: what `evaluation.json` of each iteration says in, a choice out. The start (iteration 0) stands for election too:
where no iteration beats it, `best` says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpo.evaluation.tournament import FloatArray, nash_weights

Rule = Literal["last", "best", "nash"]


@dataclass(frozen=True)
class Choice:
    """A checkpoint and why."""

    iteration: int
    """0 is the start."""
    rule: Rule
    judge: str
    win_rate_vs_start: float
    nash_weights: list[float]
    """Of the start and each iteration."""

    def sentence(self) -> str:
        """For people."""
        name = f"iteration {self.iteration}" if self.iteration else "the start, which no iteration beats"
        weights = ", ".join(f"{weight:.2f}" for weight in self.nash_weights)
        return (
            f"chosen by rule {self.rule!r} and judge {self.judge}: {name} ({self.win_rate_vs_start:.1%} against the "
            f"start; Nash weights of start and iterations {weights})"
        )


def choose(evaluations: Iterable[dict[str, Any]], rule: Rule, judge: str) -> Choice:
    """The checkpoint after the given iterations, 1 to T in order; of equals the later one.

    Raises ValueError without any.
    """
    win_rate_TT = win_matrix(evaluations, judge)
    if len(win_rate_TT) == 1:
        raise ValueError("no iteration is evaluated yet")
    weights = nash_weights(win_rate_TT)
    merit = {"last": np.arange(len(weights)), "best": win_rate_TT[:, 0], "nash": np.round(weights, 6)}[rule]
    chosen = int(np.flatnonzero(merit == merit.max())[-1])
    return Choice(chosen, rule, judge, float(win_rate_TT[chosen, 0]), [float(weight) for weight in weights])


def win_matrix(evaluations: Iterable[dict[str, Any]], judge: str) -> FloatArray:
    """Win rates of start and iterations over each other, [T + 1, T + 1], by one judge."""
    rows = [_rates(number, evaluation["judges"][judge]) for number, evaluation in enumerate(evaluations, start=1)]
    win_rate_TT = np.full((len(rows) + 1, len(rows) + 1), 0.5)
    for number, row in enumerate(rows, start=1):
        win_rate_TT[number, :number], win_rate_TT[:number, number] = row, 1 - row
    return win_rate_TT


def _rates(number: int, verdict: dict[str, Any]) -> FloatArray:
    """Win rates of an iteration over the start and each earlier one, [number]."""
    row = np.full(number, 0.5)
    row[0] = verdict["vs_start"]["win_rate"]
    for earlier, rate in verdict["vs"].items():
        row[int(earlier)] = rate["win_rate"]
    return row
