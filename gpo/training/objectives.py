"""From the arguments of a training to the loss of some answers; the formulas are in `gpo.loss` and `gpo.targets`."""

from typing import Any

from torch import Tensor

from gpo.loss import dpo_loss, gpo_loss, ipo_loss, sft_loss
from gpo.targets import pulled_targets
from gpo.training.trainer_config import GPOConfig


def wanted_ratio(reference_N: Tensor, part: dict[str, Any], lengths_N: Tensor, args: GPOConfig) -> Tensor:
    """Targets [N] in nats, with the pull to the anchor policy; raises ValueError for a pull without an anchor."""
    target_N: Tensor = part["target"].to(reference_N)
    if not args.pull:
        return target_N
    if "anchor_logps" not in part:
        raise ValueError(f"pull={args.pull} needs an anchor; give anchor_model=... to GPOTrainer, or rows anchor_logps")
    scale_N = lengths_N.to(reference_N) ** args.length_power
    anchor_N = part["anchor_logps"].to(reference_N)
    return pulled_targets(target_N, reference_N / scale_N, anchor_N / scale_N, args.pull)


def objective_loss(
    policy_N: Tensor, reference_N: Tensor, target_N: Tensor, lengths_N: Tensor, part: dict[str, Any], args: GPOConfig
) -> Tensor:
    """Mean over the answers of a part; `part["best"]` marks those that the SFT term imitates."""
    if args.objective == "dpo":
        loss = dpo_loss(policy_N, reference_N, beta=args.beta)
    elif args.objective == "ipo":
        loss = ipo_loss(policy_N, reference_N, beta=args.beta)
    else:
        loss = gpo_loss(policy_N, reference_N, target_N, lengths_N=lengths_N, length_power=args.length_power)
    if args.sft:
        loss = loss + args.sft * sft_loss(policy_N, lengths_N, part["best"])
    return loss
