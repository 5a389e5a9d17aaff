"""Length-controlled win rate: what the win rate would be if both answers were of one length (AlpacaEval 2).

Pure: arrays in, numbers out; the formula is in docs/evaluation.md. A logistic regression without intercept explains
each preference by a length term, the instruction's difficulty and the model; prediction with the length term at zero,
averaged over the instructions, is the length-controlled win rate. The fit follows the `alpaca-eval` package (0.6.6,
`metrics/glm_winrate.py`): L1 penalty, its strength chosen among ten by five grouped folds, soft labels as two weighted
rows, and, where they are given, rows of gamed baselines that pull the model toward known answers.

Shapes: N judged rows, G rows of gamed baselines, F features (tanh of length, difficulty, model).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpo.evaluation.pair_numbers import standard_error

FloatArray = NDArray[np.float64]

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse penalties C that are tried."""
GAMED_WEIGHT = 0.2 / 2
"""Of a row of a gamed baseline; halved because there are two such baselines."""
_SEED = 123
_CLIP = 1e-15


@dataclass(frozen=True)
class GamedRows:
    """What a baseline that was told to be short or long got: rows that regularise the fit."""

    preference_G: FloatArray
    std_delta_len_G: FloatArray
    difficulty_G: FloatArray
    not_gamed_G: NDArray[np.bool_]
    """False marks a gamed row: it has no model term and counts little."""


@dataclass(frozen=True)
class LengthControl:
    """The fitted model and what it says at equal length; rates in [0, 1]."""

    win_rate: float
    standard_error: float | None
    win_N: FloatArray
    """Predicted preference of each row at equal length."""
    coefficients: dict[str, float]
    inverse_penalty: float


def length_controlled(
    win_N: FloatArray,
    delta_len_N: FloatArray,
    difficulty_N: FloatArray | None = None,
    gamed: GamedRows | None = None,
) -> LengthControl:
    """Fit and predict.

    `win_N`: chance in [0, 1] that the model's answer is preferred; `delta_len_N`: characters of the baseline's answer
    minus the model's (AlpacaEval's sign). Without difficulties that term is left out, and with it the gamed rows.
    Raises ValueError for fewer rows than folds, or gamed rows without difficulties.
    """
    if gamed is not None and difficulty_N is None:
        raise ValueError("gamed rows need difficulties: their difficulty is a term of the model")
    if len(win_N) < FOLDS:
        raise ValueError(f"{len(win_N)} rows; expected at least {FOLDS}, one a fold")
    names = ["length", "model"] if difficulty_N is None else ["length", "difficulty", "model"]
    one_N = np.ones(len(win_N))
    difficulty = [] if difficulty_N is None else [difficulty_N]
    own_NF = np.stack([np.tanh(standardised(delta_len_N)), *difficulty, one_N], axis=1)
    features, preference, weight = own_NF, win_N, one_N
    if gamed is not None:
        not_gamed_G = gamed.not_gamed_G.astype(np.float64)
        gamed_GF = np.stack([np.tanh(gamed.std_delta_len_G), gamed.difficulty_G, not_gamed_G], axis=1)
        features = np.concatenate([gamed_GF, own_NF])
        preference = np.concatenate([gamed.preference_G, win_N])
        weight = np.concatenate([not_gamed_G + GAMED_WEIGHT * (1 - not_gamed_G), one_N])
    known = ~np.isnan(preference)
    coefficient_F, strength = _fit(features[known], preference[known], weight[known])
    at_equal_length_NF = np.stack([np.zeros(len(win_N)), *difficulty, one_N], axis=1)
    predicted_N = _sigmoid(at_equal_length_NF @ coefficient_F)
    return LengthControl(
        win_rate=float(predicted_N.mean()),
        standard_error=standard_error(predicted_N),
        win_N=predicted_N,
        coefficients=dict(zip(names, map(float, coefficient_F), strict=True)),
        inverse_penalty=strength,
    )


def standardised(delta_len_N: FloatArray) -> FloatArray:
    """Divided by its standard deviation (not centred); all zero where every difference is the same."""
    spread = delta_len_N.std(ddof=1) if len(delta_len_N) > 1 else 0.0
    return delta_len_N / spread if spread > 0 else np.zeros_like(delta_len_N)


def _fit(features_NF: FloatArray, preference_N: FloatArray, weight_N: FloatArray) -> tuple[FloatArray, float]:
    """Coefficients at the best strength; ties go to the stronger penalty, as in scikit-learn."""
    rows = len(preference_N)
    # A soft label p is two rows: one that says yes and weighs p, one that says no and weighs 1 - p.
    features = np.concatenate([features_NF, features_NF])
    label = np.concatenate([np.ones(rows), np.zeros(rows)])
    share = np.concatenate([preference_N, 1 - preference_N])
    weight = np.concatenate([weight_N, weight_N])
    truth = np.concatenate([preference_N, preference_N])
    scores = np.zeros(len(STRENGTHS))
    for train, held in _folds(rows):
        random = np.random.RandomState(_SEED)  # One stream a fold, as in scikit-learn's own cross-validation.
        for place, strength in enumerate(STRENGTHS):
            coefficient_F = _logistic(features[train], label[train], (share * weight)[train], strength, random)
            scores[place] += _log_likelihood(features[held] @ coefficient_F, truth[held], weight[held]) / FOLDS
    best = float(STRENGTHS[int(np.argmax(scores))])
    return _logistic(features, label, share * weight, best, np.random.RandomState(_SEED)), best


def _folds(rows: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Training and held rows of the doubled data; both halves of a row are always together."""
    from sklearn.model_selection import GroupKFold

    group = np.concatenate([np.arange(rows), np.arange(rows)])
    yield from GroupKFold(n_splits=FOLDS).split(group, groups=group)


def _logistic(
    features: FloatArray, label: FloatArray, weight: FloatArray, strength: float, random: np.random.RandomState
) -> FloatArray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=random)
    coefficient: FloatArray = model.fit(features, label, sample_weight=weight).coef_[0]
    # liblinear leaves rows without weight out, and takes the only class that is left for the one that says yes.
    return coefficient if weight[label == 1].any() else -coefficient


def _log_likelihood(logit: FloatArray, truth: FloatArray, weight: FloatArray) -> float:
    predicted = np.clip(_sigmoid(logit), _CLIP, 1 - _CLIP)
    likelihood = truth * np.log(predicted) + (1 - truth) * np.log(1 - predicted)
    return float((likelihood * weight).mean())


def _sigmoid(logit: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0, -logit))
