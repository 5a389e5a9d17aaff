"""Targets: from a table of preference scores to the log-ratio that each answer is trained towards.

Pure: tensors in, tensors out, no configuration and no I/O. `gpo.loss` regresses on what is returned here.

Shapes: B prompts, K samples of the policy, M baseline answers. `score_KM[i, j]` is the raw score <R v_i, v_j>
of sample i over baseline answer j (positive: i is preferred), s / tau are log-odds, a target is a wanted
log(pi / pi_ref) in nats. Tables may have leading dimensions: `score_BKM` is a batch of tables of equal size.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Method = Literal["gpo", "sppo", "gpo-reference", "sppo-reference"]
LogZ = Literal["zero", "mean", "logmeanexp"]


def preference_targets(
    score_KM: Tensor,
    *,
    method: Method,
    tau: float,
    beta: float,
    clamp: float | None = None,
    weight_M: Tensor | None = None,
    exclude_self: bool = False,
    log_z: LogZ = "zero",
) -> Tensor:
    """Target of each sample, `[..., K]` in nats, from raw scores `[..., K, M]` against the baseline answers.

        gpo              mean_m(s_im) / tau / beta                      (paper Eq. 5.2 and 5.3)
        sppo             (mean_m sigmoid(s_im / tau) - 1/2) / beta      (SPPO's target with eta = 1 / beta)
        gpo-reference    2 mean_m(s_im) / tau / beta                    (published code, with clamp 1000)
        sppo-reference   (mean_m sigmoid(2 s_im / tau) - 1/2) / beta    (published code)

    The published code computes its factor 2 as S - S^T. For a self table that is not skew-symmetric (a
    pairwise judge), pass `skew_part(score_KK)` to repeat it; a table against other answers has no transpose
    to subtract, square or not, so this function never forms it.

    weight_M      weights of the baseline answers, `[M]` or `[..., M]`; only their ratios matter. Negative
                  weights are allowed where the total is positive (see `optimistic_weights`). None: all equal.
    exclude_self  leaves out column i for sample i; needs the square table of the samples against themselves.
    log_z         what is subtracted from a prompt's targets in place of log Z: nothing ("zero"), their mean
                  over the K samples ("mean"), or log mean_k exp(target_k) ("logmeanexp": the estimate of log
                  Z from samples of pi_ref).
    clamp         bound on the absolute target, applied last: it bounds what is trained on. None: no bound.

    The dtype of the result is that of the table; bfloat16 and float16 are computed in float32 inside.
    Raises ValueError for a table that is empty, not floating or not finite, for parameters out of range, for
    `log_z` with a `-reference` method, and for targets that the dtype cannot hold.
    """
    _check_table(score_KM)
    _check_parameters(method, tau, beta, clamp, log_z)
    wide_KM = score_KM if score_KM.dtype == torch.float64 else score_KM.float()
    log_odds_KM = wide_KM / tau * (2 if method.endswith("-reference") else 1)
    if method.startswith("gpo"):
        advantage_K = _baseline_mean(log_odds_KM, weight_M, exclude_self)
    else:
        advantage_K = _baseline_mean(torch.sigmoid(log_odds_KM), weight_M, exclude_self) - 0.5
    target_K = advantage_K / beta
    target_K = target_K - _log_normaliser(target_K, log_z)
    if clamp is not None:
        target_K = target_K.clamp(-clamp, clamp)
    target_K = target_K.to(score_KM.dtype)
    if not torch.isfinite(target_K).all():
        found = f"targets overflow {score_KM.dtype} with tau={tau}, beta={beta}"
        raise ValueError(f"{found}; expected finite ones: raise beta or set clamp")
    return target_K


def optimistic_weights(samples: int, weight_M: Tensor) -> Tensor:
    """Weights `[K + M]` of the `optimistic` baseline: 2 * mean over samples - mean over previous answers.

    For a table whose columns are the K samples followed by the M answers of the previous policy, whose own
    weights `weight_M` are nonnegative. The result sums to 1, so `optimistic` is one weighted mean like any
    other baseline, and clamp and log Z apply to the combination. Raises ValueError for no sample and for
    weights that are negative, not finite or all zero.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1")
    if not weight_M.is_floating_point() or weight_M.ndim != 1:
        raise ValueError(f"weight_M is {weight_M.dtype} {list(weight_M.shape)}; expected floating [M]")
    total = weight_M.sum()
    if not bool(torch.isfinite(weight_M).all() and (weight_M >= 0).all() and total > 0):
        raise ValueError("weight_M must be finite, nonnegative and not all zero")
    return torch.cat([weight_M.new_full((samples,), 2.0 / samples), -weight_M / total])


def standardising_factor(target_N: Tensor, nats: float) -> float:
    """What targets [N] of a whole iteration are multiplied with so that their root mean square is `nats`; 1 for zeros.

    Nothing is subtracted: a prompt's own mean is log Z's business. Raises ValueError for `nats` out of range, targets
    that are not finite, and none at all.
    """
    if not (math.isfinite(nats) and nats > 0):
        raise ValueError(f"nats is {nats}; expected a positive finite number")
    if target_N.ndim != 1 or not len(target_N) or not bool(torch.isfinite(target_N).all()):
        raise ValueError(f"targets have shape {list(target_N.shape)}; expected finite [N] with at least one")
    spread = target_N.double().square().mean().sqrt().item()
    return nats / spread if spread else 1.0


def pulled_targets(target_N: Tensor, ref_logps_N: Tensor, anchor_logps_N: Tensor, pull: float) -> Tensor:
    """Targets [N] in nats with a KL pull to an anchor policy: target + pull (log p_anchor - log p_ref).

    The minimiser is pi_ref^(1 - pull) pi_anchor^pull exp(target): the closed form of E[score] / beta minus
    (1 - pull) KL(pi | pi_ref) minus pull KL(pi | pi_anchor). The anchor is the starting policy or one that is moved
    now and then (magnetic mirror descent). pull 0 leaves the targets alone. Raises ValueError outside 0..1.
    """
    if not 0 <= pull <= 1:
        raise ValueError(f"pull is {pull}; expected 0..1")
    return target_N + pull * (anchor_logps_N.to(target_N) - ref_logps_N.to(target_N))


def skew_part(score_KK: Tensor) -> Tensor:
    """(S - S^T) / 2 of square tables `[..., K, K]`, as the published code treats inconsistent judges.

    An exactly skew-symmetric table, such as the GPM's, is returned unchanged. Raises ValueError for a table
    that is not square.
    """
    if score_KK.ndim < 2 or score_KK.shape[-1] != score_KK.shape[-2]:
        raise ValueError(f"skew_part needs square tables [..., K, K]; found shape {list(score_KK.shape)}")
    return (score_KK - score_KK.transpose(-1, -2)) / 2


def _baseline_mean(value_KM: Tensor, weight_M: Tensor | None, exclude_self: bool) -> Tensor:
    """Weighted mean over M, `[..., K]`; `exclude_self` sets the weights of the diagonal to zero."""
    if weight_M is None and not exclude_self:
        return value_KM.mean(-1)
    if weight_M is None:
        weight_M = value_KM.new_ones(value_KM.shape[-1])
    _check_weight(weight_M, value_KM)
    weight_KM = weight_M.to(value_KM).unsqueeze(-2).expand_as(value_KM)
    if exclude_self:
        weight_KM = weight_KM.masked_fill(_own_column(value_KM), 0.0)
    total_K = weight_KM.sum(-1)
    if not (total_K > 0).all():
        least = total_K.min().item()
        raise ValueError(f"weight_M leaves a sample with a total weight of {least:g}; expected a positive total")
    return (value_KM * weight_KM).sum(-1) / total_K


def _own_column(value_KM: Tensor) -> Tensor:
    samples, answers = value_KM.shape[-2:]
    if samples != answers:
        raise ValueError(f"exclude_self needs the square table of the samples; found K={samples}, M={answers}")
    if samples < 2:
        raise ValueError("exclude_self with K=1 leaves nothing to compare with; expected K of at least 2")
    return torch.eye(samples, dtype=torch.bool, device=value_KM.device)


def _log_normaliser(target_K: Tensor, log_z: LogZ) -> Tensor:
    """The estimate of log Z of each prompt, `[..., 1]`."""
    if log_z == "mean":
        return target_K.mean(-1, keepdim=True)
    if log_z == "logmeanexp":
        # logsumexp subtracts the maximum first: targets of a thousand nats must not overflow exp().
        return target_K.logsumexp(-1, keepdim=True) - math.log(target_K.shape[-1])
    return torch.zeros_like(target_K[..., :1])


def _check_table(score_KM: Tensor) -> None:
    if not score_KM.is_floating_point():
        raise ValueError(f"score table has dtype {score_KM.dtype}; expected a floating one")
    if score_KM.ndim < 2 or 0 in score_KM.shape:
        raise ValueError(f"score table has shape {list(score_KM.shape)}; expected [..., K, M] with K, M >= 1")
    if not torch.isfinite(score_KM).all():
        where = (~torch.isfinite(score_KM)).nonzero()[0].tolist()
        raise ValueError(f"score table holds {score_KM[tuple(where)].item()} at {where}; expected finite scores")


def _check_parameters(method: str, tau: float, beta: float, clamp: float | None, log_z: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(get_args(Method))}")
    if log_z not in get_args(LogZ):
        raise ValueError(f"log_z is {log_z!r}; expected one of {', '.join(get_args(LogZ))}")
    if method.endswith("-reference") and log_z != "zero":
        raise ValueError(f"log_z is {log_z!r} with method {method!r}; the published code never centres: use 'zero'")
    for name, value in (("tau", tau), ("beta", beta), ("clamp", clamp)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; expected a positive finite number")


def _check_weight(weight_M: Tensor, value_KM: Tensor) -> None:
    allowed = (value_KM.shape[-1:], value_KM.shape[:-2] + value_KM.shape[-1:])
    if weight_M.shape not in allowed:
        expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(allowed))
        raise ValueError(f"weight_M has shape {list(weight_M.shape)}; expected {expected}")
    if not torch.isfinite(weight_M).all():
        raise ValueError("weight_M holds a value that is not finite; expected finite weights")
