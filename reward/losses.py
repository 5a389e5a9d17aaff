"""Pure losses of pairs: preference scores in, one loss a pair out.
What it is: the logistic loss (with margin), its soft-label form and the regression on log-odds. tau divides
the score; it is not a temperature of the gate. What it is not: it holds no model, reduces nothing (callers
take the mean, the sum or a weighted mean) and computes no scores (`reward.preference` does).

Shape suffix: N pairs. `score_N` is chosen over rejected; dtype in = dtype out.
"""

import torch.nn.functional as F
from torch import Tensor

from reward.errors import RewardInputError


def logistic_loss(score_N: Tensor, tau: float | Tensor, margin_N: Tensor | None = None) -> Tensor:
    """-log sigmoid((s - margin) / tau) of each pair, in nats; finite for any finite score."""
    return -F.logsigmoid(_log_odds(score_N, tau, margin_N))


def soft_label_loss(score_N: Tensor, tau: float | Tensor, target_prob_N: Tensor) -> Tensor:
    """Cross entropy, in nats, of sigmoid(s / tau) with the probability that the first answer is preferred."""
    if bool(((target_prob_N < 0) | (target_prob_N > 1)).any()):
        raise RewardInputError("target_prob_N has entries outside [0, 1], expected the probability of the first answer")
    odds_N = _log_odds(score_N, tau, None)
    return -(target_prob_N * F.logsigmoid(odds_N) + (1 - target_prob_N) * F.logsigmoid(-odds_N))


def regression_loss(score_N: Tensor, tau: float | Tensor, target_log_odds_N: Tensor) -> Tensor:
    """(s / tau - target)^2: the paper's form, without the factor 1/2 of the published code."""
    return (_log_odds(score_N, tau, None) - target_log_odds_N).square()


def _log_odds(score_N: Tensor, tau: float | Tensor, margin_N: Tensor | None) -> Tensor:
    if margin_N is not None:
        if margin_N.shape != score_N.shape:
            raise RewardInputError(
                f"margins have shape {tuple(margin_N.shape)}, scores {tuple(score_N.shape)}; expected one margin a pair"
            )
        score_N = score_N - margin_N
    return score_N / tau
