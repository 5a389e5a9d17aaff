"""Where the time and the memory of one step of our trainer go: `python benchmarks/training.py --part profile`.

One step of the rows that the benchmark trains on, prompts shared, behind a whole training that is not counted: forward,
backward, clip and optimizer. `benchmarks/operators.py` says what operators count as.

Activations are the most that one pass over the rows holds at a time on top of weights, gradients and the optimizer's
state: what the backward pass needs, and what comes and goes. They are watched in a pass of their own, whose gradients
are there already.
"""

import argparse
import tempfile
from typing import Any

from benchmarks.operators import seconds_by_kind
from benchmarks.training_ways import our_trainer


def profile(args: argparse.Namespace) -> dict[str, Any]:
    """Shares of a step's time, and GiB of what is held."""
    from gpo.training.batches import Steps

    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(args, folder)
        trainer.train()
        inputs = Steps(trainer.train_dataset, trainer._plan(shuffle=True))[0, 0]
        trainer.training_step(trainer.model, inputs)
        activations = most_allocated(lambda: trainer.training_step(trainer.model, inputs))
        gradients = sum(_bytes(weight.grad) for weight in trainer.model.parameters())
        trainer.optimizer.zero_grad()
        spent = seconds_by_kind(lambda: whole_step(trainer, inputs))
        seconds = sum(spent.values())
    state = [value for one in trainer.optimizer.state.values() for value in one.values()]
    held = {
        "weights": sum(map(_bytes, trainer.model.parameters())),
        "gradients": gradients,
        "optimizer state": sum(map(_bytes, state)),
        "activations at their peak": activations,
    }
    return {
        "step_seconds": round(seconds, 3),
        "shares": {kind: round(one / seconds, 4) for kind, one in spent.items()},
        "gib": {what: round(size / 2**30, 3) for what, size in held.items()},
    }


def whole_step(trainer: Any, inputs: Any) -> None:
    """Forward, backward, clip and optimizer."""
    trainer.training_step(trainer.model, inputs)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()


def most_allocated(work: Any) -> int:
    """The most bytes that `work` held at a time on top of what was there before."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watched

    with watched(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    now = most = 0
    changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _bytes(value: Any) -> int:
    import torch

    return value.nbytes if isinstance(value, torch.Tensor) else 0


def profile_table(found: dict[str, Any]) -> str:
    """Both halves as Markdown."""
    lines = ["", f"| of a step of ours, {found['step_seconds']:.2f} s | share |", "|---|---:|"]
    lines += [f"| {kind} | {share:.1%} |" for kind, share in found["shares"].items()]
    lines += ["", "| held | GiB |", "|---|---:|", *(f"| {what} | {size:.2f} |" for what, size in found["gib"].items())]
    return "\n".join([*lines, f"| the process at its peak | {found['peak_gib']:.2f} |"])
