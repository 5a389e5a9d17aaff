"""What a training step tells of itself, and the rules that stop a training that goes wrong.

The numbers are pure functions of a step's rows. Shapes: N answers of a step, over all workers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

LARGEST_EXPONENT = 30.0
"""Log-ratios beyond it do not overflow the importance weights."""


def step_numbers(
    ratio_N: Tensor, target_N: Tensor, length_N: Tensor, score_N: Tensor, length_power: float = 0.0
) -> dict[str, float]:
    """Metrics of a step from log-ratios and targets in nats, lengths in tokens and scores in any unit.

    log_ratio_mean, log_ratio_max_abs
    target_correlation, target_slope   of log-ratio / length^length_power, as the loss has it, on its target; a slope of
                             1 is the minimum of the loss
    kl                       mean ratio^2 / 2, which agrees with KL(pi | pi_ref) and KL(pi_ref | pi) to second order
    length                   mean of the rows
    length_expected          the same under the moved policy: weighted by exp(ratio), normalised by the weights
    length_score_correlation of what answers were judged by, whatever clamp, scale and pull make of it in the targets

    Correlations are left out where one side does not vary.
    """
    ratio, target, length, score = ratio_N.double(), target_N.double(), length_N.double(), score_N.double()
    weight = ratio.clamp(max=LARGEST_EXPONENT).exp()
    numbers = {
        "log_ratio_mean": ratio.mean().item(),
        "log_ratio_max_abs": ratio.abs().max().item(),
        "kl": ratio.square().mean().item() / 2,
        "length": length.mean().item(),
        "length_expected": ((weight * length).sum() / weight.sum()).item(),
    }
    regressed = ratio / length**length_power
    if varies(regressed) and varies(target):
        numbers["target_correlation"] = correlation(regressed, target)
        centred = target - target.mean()
        numbers["target_slope"] = ((regressed * centred).sum() / centred.square().sum()).item()
    if varies(length) and varies(score):
        numbers["length_score_correlation"] = correlation(length, score)
    return numbers


def clamped_share(target_N: Tensor, clamp: float) -> float:
    """Share of targets at the clamp; targets in nats before any pull, which comes on top of the clamp."""
    return (target_N.abs() >= clamp * (1 - 1e-6)).double().mean().item()


def varies(values: Tensor) -> bool:
    """Whether there are two different values."""
    return len(values) > 1 and bool((values != values[0]).any())


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's r of two vectors that vary."""
    return torch.corrcoef(torch.stack([one, other]))[0, 1].item()


class StepRows:
    """Log-ratio, wanted ratio, length, target and score of the answers of each step, kept until they are asked for.

    Workers exchange them then, all steps at once: a step that is neither logged nor judged by a stop rule costs no
    message and no wait for the GPU.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._open: list[Tensor] = []
        """[N, 5] of each part of the step at work."""
        self._closed: dict[str, list[Tensor]] = {"train": [], "eval": []}

    def add(self, ratio_N: Tensor, wanted_N: Tensor, length_N: Tensor, target_N: Tensor, score_N: Tensor) -> None:
        """Answers of a part of the step: lengths in tokens, scores in any unit, the others in nats.

        `wanted_N` is what the loss compares with, `target_N` the same before a pull.
        """
        columns = (ratio_N.detach(), wanted_N, length_N, target_N, score_N)
        self._open.append(torch.stack([column.to(ratio_N) for column in columns], -1))

    def end_step(self, mode: str) -> None:
        """What was added is a whole step of `mode` (train, eval); nothing, where this worker was idle in it."""
        nothing = torch.zeros(0, 5, device=self._accelerator.device)
        self._closed[mode].append(torch.cat(self._open) if self._open else nothing)
        self._open = []

    def numbers(self, mode: str, length_power: float, clamp: float | None) -> list[dict[str, float]]:
        """Metrics of every step since they were last asked for; all workers ask together.

        Those of an evaluation are one step: its numbers are of all its rows, whose last step may be a small one.
        """
        steps, self._closed[mode] = self._closed[mode], []
        if not steps:
            return []
        steps = [torch.cat(steps)] if mode == "eval" else steps
        own = torch.cat([torch.cat([rows, torch.full_like(rows[:, :1], at)], -1) for at, rows in enumerate(steps)])
        # An answer has a token, so a length of 0 is what fills up the shorter workers.
        everyone = self._accelerator.gather(self._accelerator.pad_across_processes(own, pad_index=0)).float().cpu()
        everyone = everyone[everyone[:, 2] > 0]
        found = []
        for at in range(len(steps)):
            ratio_N, wanted_N, length_N, target_N, score_N, _ = everyone[everyone[:, 5] == at].unbind(-1)
            numbers = step_numbers(ratio_N, wanted_N, length_N, score_N, length_power=length_power)
            if clamp is not None:
                numbers["clamped"] = clamped_share(target_N, clamp)
            found.append(numbers)
        return found


def tell_evaluation(logs: dict[str, float], prefix: str, numbers: dict[str, float], steps: int) -> None:
    """Add what an evaluation of so many steps found to its log, of which `prefix` is `evaluation_prefix`."""
    logs.update({f"{prefix}_{name}": value for name, value in numbers.items()})
    if logs.get(f"{prefix}_runtime"):
        # transformers counts steps of a batch size that nothing here reads.
        logs[f"{prefix}_steps_per_second"] = round(steps / logs[f"{prefix}_runtime"], 3)


def evaluation_prefix(logs: Iterable[str]) -> str | None:
    """How the names of an evaluation's log begin, as that of its loss: `eval`, or `eval_NAME` of one set of many."""
    return next((name.removesuffix("_loss") for name in logs if name.endswith("_loss")), None)


def check_finite(loss: float, grad_norm: float, step: int, learning_rate: float) -> None:
    """Raises FloatingPointError when a step made no sense; DeepSpeed tells a norm that is not finite as -1."""
    if math.isfinite(loss) and 0 <= grad_norm < math.inf:
        return
    length = grad_norm if grad_norm >= 0 else math.nan
    raise FloatingPointError(
        f"step {step}: loss is {loss:g}, length of the gradient {length:g}, expected finite numbers; nothing of it is "
        f"saved: lower learning_rate ({learning_rate:g}) or the targets, and start anew"
    )


@dataclass(frozen=True, slots=True)
class StopLimits:
    """When to stop; None never does. Each is compared with the mean of the last `window` steps."""

    kl: float | None = None
    """Nats an answer, as `step_numbers` estimates it."""
    length_growth: float | None = None
    """Expected length under the moved policy over that of the rows, minus 1; 0.2 is a fifth longer."""
    collapse: float | None = None
    """Nats by which the mean log-ratio of all answers has fallen: mass goes to text that nobody sampled."""
    window: int = 5


class StopRule(TrainerCallback):
    """Stops the training when a limit is passed, and keeps which, in `stopped` and in the log history.

    The trainer has it judge every step, logged or not. What it looks back at is in the state that each checkpoint
    holds. The step that stops is not saved: a training that resumed there would go one step further, while one that
    resumes before it comes to the same step and stops.
    """

    KEPT_AS = "stop rule"
    """Its place in the state; not the name of a class, of which transformers would make another rule."""

    def __init__(self, limits: StopLimits) -> None:
        self._limits = {"kl": limits.kl, "length_growth": limits.length_growth, "collapse": limits.collapse}
        self._window = limits.window
        self._seen: list[dict[str, float]] = []
        self.stopped: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A training that goes on looks back at the steps before it, so that it stops where it would have stopped."""
        self._seen, self.stopped = state.stateful_callbacks.get(self.KEPT_AS, {}).get("seen", []), None

    @property
    def is_on(self) -> bool:
        """Whether there is a limit; without one no step need be told."""
        return any(limit is not None for limit in self._limits.values())

    def judge(self, steps: Sequence[dict[str, float]], state: Any, control: Any) -> None:
        """`step_numbers` of the steps since the last call; before the log, the evaluation and the save of the last."""
        if self.stopped is not None:
            return
        self._seen = [*self._seen, *map(self._values, steps)][-self._window :]
        state.stateful_callbacks[self.KEPT_AS] = {"seen": self._seen}
        if len(self._seen) < self._window:
            return
        for name, limit in self._limits.items():
            value = sum(seen[name] for seen in self._seen) / len(self._seen)
            if limit is not None and value > limit:
                self.stopped = {"rule": name, "value": value, "limit": limit, "step": state.global_step}
                state.log_history.append({"stopped": name, **self.stopped})
                control.should_training_stop, control.should_save = True, False
                return

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Behind the step that stops: with a save at each epoch's end, transformers asks for one here."""
        if self.stopped is not None:
            control.should_save = False

    @staticmethod
    def _values(numbers: dict[str, float]) -> dict[str, float]:
        return {
            "kl": numbers["kl"],
            "length_growth": numbers["length_expected"] / numbers["length"] - 1,
            "collapse": -numbers["log_ratio_mean"],
        }
