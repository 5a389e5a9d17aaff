"""All against all: what a table of win rates says of N checkpoints.

Pure: arrays in, numbers out. Shapes: B prompts, N checkpoints, R resamples. `win_BNN[b, i, j]` is the chance that
checkpoint i's answer to prompt b is preferred to j's; its transpose is one minus it and its diagonal 1/2.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, linprog, minimize
from scipy.special import expit, xlogy

from gpo.evaluation.winrate import resampled_means

FloatArray = NDArray[np.float64]

ELO_SCALE = 400 / np.log(10)
ELO_MEAN = 1000.0
_ELO_PRIOR = 1e-5
"""Pulls ratings together by about a hundred-thousandth of a game, so that a checkpoint that never loses has one too."""
_SLACK = 1e-9


@dataclass(frozen=True)
class Cycle:
    """i beats j, j beats k, k beats i."""

    checkpoints: tuple[int, int, int]
    win_rates: tuple[float, float, float]
    """Of i over j, j over k, k over i."""
    decided: bool
    """All three 95 % intervals exclude one half."""


@dataclass(frozen=True)
class Tournament:
    """What a tournament says."""

    win_rate_NN: FloatArray
    low_NN: FloatArray
    """Lower and upper ends of the 95 % bootstrap intervals over prompts."""
    high_NN: FloatArray
    nash_N: FloatArray
    elo_N: FloatArray
    cycles: list[Cycle]
    decided_triples: int
    """Triples without a tie among their pairs, cyclic or not."""


def tournament(win_BNN: FloatArray, seed: int = 0) -> Tournament:
    """All numbers of a tournament; raises ValueError for a table that is not skew around 1/2."""
    checkpoints = win_BNN.shape[1]
    if win_BNN.shape != (len(win_BNN), checkpoints, checkpoints) or len(win_BNN) == 0 or checkpoints < 2:
        raise ValueError(f"found a table of shape {list(win_BNN.shape)}; expected [B, N, N] with B >= 1 and N >= 2")
    if not np.allclose(win_BNN + win_BNN.transpose(0, 2, 1), 1, atol=1e-9):
        raise ValueError("the chances of a pair's two sides do not add to 1")
    win_rate_NN = win_BNN.mean(0)
    means_RNN = resampled_means(win_BNN.reshape(len(win_BNN), -1), seed).reshape(-1, checkpoints, checkpoints)
    low_NN, high_NN = np.quantile(means_RNN, [0.025, 0.975], axis=0)
    cycles, decided = find_cycles(win_rate_NN, low_NN)
    return Tournament(
        win_rate_NN=win_rate_NN,
        low_NN=low_NN,
        high_NN=high_NN,
        nash_N=nash_weights(win_rate_NN),
        elo_N=elo_ratings(win_rate_NN),
        cycles=cycles,
        decided_triples=decided,
    )


def nash_weights(win_rate_NN: FloatArray) -> FloatArray:
    """The mixture of checkpoints that no checkpoint beats: sum_i weight_i win_rate[i, j] >= 1/2 for every j.

    Where several mixtures do, the one of largest entropy (Balduzzi et al. 2018, "Re-evaluating evaluation"), so that
    two equal checkpoints get equal weights.
    """
    payoff_NN = win_rate_NN - 0.5
    count = len(payoff_NN)
    found = linprog(
        np.zeros(count), A_ub=-payoff_NN.T, b_ub=np.full(count, _SLACK), A_eq=np.ones((1, count)), b_eq=[1.0]
    )
    if not found.success:
        raise ValueError(f"no Nash mixture was found ({found.message}); expected a table that is skew around 1/2")
    start_N = np.clip(found.x, 0, None)
    constraints = [
        LinearConstraint(payoff_NN.T, -_SLACK, np.inf),
        LinearConstraint(np.ones((1, count)), 1, 1),
    ]
    widest = minimize(
        lambda weight_N: float(xlogy(weight_N, np.clip(weight_N, 1e-300, None)).sum()),
        start_N,
        jac=lambda weight_N: np.log(np.clip(weight_N, 1e-12, None)) + 1,
        bounds=[(0, 1)] * count,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weight_N = np.clip(widest.x, 0, None)
    weight_N = weight_N / weight_N.sum()
    # The entropy is a preference among mixtures; being unbeaten is not given up for it.
    if not widest.success or (weight_N @ payoff_NN).min() < -1e-6:
        weight_N = start_N / start_N.sum()
    weight_N[weight_N < 1e-6] = 0.0
    return weight_N / weight_N.sum()


def elo_ratings(win_rate_NN: FloatArray) -> FloatArray:
    """Ratings around 1000 of the Bradley-Terry model nearest to the table (maximum likelihood, soft results).

    Ratings are an order; what is cyclic in the table they cannot show, which is why they stand beside it only.
    """
    upper_P = np.triu_indices(len(win_rate_NN), 1)
    first_P, second_P = upper_P
    win_P = win_rate_NN[upper_P]

    def loss(rating_N: FloatArray) -> tuple[float, FloatArray]:
        difference_P = rating_N[first_P] - rating_N[second_P]
        chance_P = expit(difference_P)
        # -log(sigmoid) by logaddexp, which does not overflow.
        value = (win_P * np.logaddexp(0, -difference_P) + (1 - win_P) * np.logaddexp(0, difference_P)).sum()
        gradient_N = _ELO_PRIOR * rating_N
        np.add.at(gradient_N, first_P, chance_P - win_P)
        np.add.at(gradient_N, second_P, win_P - chance_P)
        return float(value + _ELO_PRIOR / 2 * (rating_N**2).sum()), gradient_N

    found = minimize(loss, np.zeros(len(win_rate_NN)), jac=True, method="L-BFGS-B", options={"ftol": 1e-14})
    rating_N = found.x - found.x.mean()
    return ELO_MEAN + ELO_SCALE * rating_N


def find_cycles(win_rate_NN: FloatArray, low_NN: FloatArray) -> tuple[list[Cycle], int]:
    """Cyclic triples, each once with its smallest index first, and how many triples are decided at all."""
    cycles: list[Cycle] = []
    decided = 0
    for i, j, k in itertools.combinations(range(len(win_rate_NN)), 3):
        rates = [win_rate_NN[i, j], win_rate_NN[j, k], win_rate_NN[k, i]]
        if any(rate == 0.5 for rate in rates):
            continue
        decided += 1
        if all(rate > 0.5 for rate in rates):
            cycles.append(_cycle((i, j, k), win_rate_NN, low_NN))
        elif all(rate < 0.5 for rate in rates):
            cycles.append(_cycle((i, k, j), win_rate_NN, low_NN))
    return cycles, decided


def _cycle(triple: tuple[int, int, int], win_rate_NN: FloatArray, low_NN: FloatArray) -> Cycle:
    i, j, k = triple
    edges = [(i, j), (j, k), (k, i)]
    one, two, three = (float(win_rate_NN[edge]) for edge in edges)
    return Cycle(triple, (one, two, three), all(bool(low_NN[edge] > 0.5) for edge in edges))
