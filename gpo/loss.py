"""The GPO loss, and those it is compared with.

Pure: tensors in, tensors out, no configuration and no I/O. Targets come from `gpo.targets`.

Shapes: N rows, one answer each. Log-probabilities are sums over the answer's tokens, in nats, from
`gpo.training.log_probs`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gpo_loss(
    policy_logps_N: Tensor,
    ref_logps_N: Tensor,
    target_N: Tensor,
    *,
    lengths_N: Tensor | None = None,
    length_power: float = 0.0,
) -> Tensor:
    """Mean over the rows of (ratio - target)^2, a scalar in nats^2 (paper Eq. 5.3).

        ratio = (policy - ref) / length^length_power

    `policy_logps_N`, `ref_logps_N`: log-probabilities of whole answers; `target_N`: from
    `preference_targets`; `lengths_N`: tokens of each answer. `length_power` 0 is GPO, 1 is LN-GPO (paper App.
    E.2); the target is not divided. With a best and a worst answer a prompt, each a row, this is the
    published loss ((.)^2 + (.)^2) / 2.
    Only the policy receives a gradient. Low-precision input is computed
    in float32, float64 stays float64. Raises ValueError for rows of different number, no rows, or lengths
    that are missing or not positive when they are needed.
    """
    _check_rows(policy_logps_N=policy_logps_N, ref_logps_N=ref_logps_N, target_N=target_N)
    dtype = torch.promote_types(policy_logps_N.dtype, torch.promote_types(target_N.dtype, torch.float32))
    ratio_N = policy_logps_N.to(dtype) - ref_logps_N.detach().to(dtype)
    if length_power != 0.0:
        ratio_N = ratio_N / _checked_lengths(lengths_N, policy_logps_N).to(dtype) ** length_power
    return (ratio_N - target_N.detach().to(dtype)).square().mean()


def dpo_loss(policy_logps_N: Tensor, ref_logps_N: Tensor, *, beta: float) -> Tensor:
    """Mean over pairs of -log sigmoid(beta (r_best - r_worst)), a scalar (Rafailov et al. 2023, Eq. 7).

        r = policy - ref

    Rows come in pairs, the better answer first: N is even. Only the policy receives a gradient. Raises ValueError for
    rows that do not pair up and a beta that is not positive.
    """
    return -F.logsigmoid(beta * _pair_margins(policy_logps_N, ref_logps_N, beta)).mean()


def ipo_loss(policy_logps_N: Tensor, ref_logps_N: Tensor, *, beta: float) -> Tensor:
    """Mean over pairs of (r_best - r_worst - 1 / (2 beta))^2 in nats^2 (Azar et al. 2023, Eq. 17).

    r and the order of rows as in `dpo_loss`. Log-ratios are those of whole answers, as in the paper; TRL divides them
    by their lengths.
    """
    return (_pair_margins(policy_logps_N, ref_logps_N, beta) - 1 / (2 * beta)).square().mean()


def sft_loss(policy_logps_N: Tensor, lengths_N: Tensor, best_N: Tensor) -> Tensor:
    """Mean over the rows of best * (-log p / length), in nats a token.

    `best_N` is 1 for the answers to imitate and 0 for the others, which count in the mean, so that the value does not
    depend on how a step's rows are cut into micro-batches. Raises ValueError as `gpo_loss` does.
    """
    _check_rows(policy_logps_N=policy_logps_N, best_N=best_N)
    lengths = _checked_lengths(lengths_N, policy_logps_N)
    return (-policy_logps_N / lengths.to(policy_logps_N) * best_N.to(policy_logps_N)).mean()


def _pair_margins(policy_logps_N: Tensor, ref_logps_N: Tensor, beta: float) -> Tensor:
    """r_best - r_worst of each pair, [N / 2]."""
    _check_rows(policy_logps_N=policy_logps_N, ref_logps_N=ref_logps_N)
    if len(policy_logps_N) % 2:
        raise ValueError(f"{len(policy_logps_N)} rows do not pair up; expected a better and a worse one by turns")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; expected a positive number")
    ratio_N = (policy_logps_N - ref_logps_N.detach()).to(torch.promote_types(policy_logps_N.dtype, torch.float32))
    return ratio_N[0::2] - ratio_N[1::2]


def _check_rows(**tensors: Tensor) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    first = next(iter(shapes.values()))
    if len(first) != 1 or first[0] < 1 or any(shape != first for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"found {found}; expected the same [N] for all, with at least one row")


def _checked_lengths(lengths_N: Tensor | None, policy_logps_N: Tensor) -> Tensor:
    if lengths_N is None:
        raise ValueError("lengths_N is missing; a length_power other than 0 divides by the lengths")
    _check_rows(policy_logps_N=policy_logps_N, lengths_N=lengths_N)
    if not (lengths_N > 0).all():
        raise ValueError(f"lengths_N holds {lengths_N.min().item()}; expected at least one token in each answer")
    return lengths_N
