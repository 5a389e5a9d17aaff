"""Where the time and the memory of one step of our trainer go: `python benchmarks/training.py --part profile`.

One step of the rows that the benchmark trains on, prompts shared, behind a whole training that is not counted: forward,
backward, clip and optimizer. Each operator's own time counts once, by the first of these that it belongs to:

    attention         all within attention's own function, its products and casts too
    optimizer         all within the optimizer's step
    matrix products   those of linear layers and of the head
    copies and casts  where an operator only moves numbers or changes their type
    all other         what works on each number by itself, norms, sums, clipping
    between           the time in which no operator runs: Python and the autograd engine

Activations are the most that one pass over the rows holds at a time on top of weights, gradients and the optimizer's
state: what the backward pass needs, and what comes and goes. They are watched in a pass of their own, whose gradients
are there already.
"""

import argparse
import tempfile
import time
from typing import Any

from benchmarks.training_ways import our_trainer

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmm_", "aten::mv")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::cat", "aten::contiguous")
KINDS = ("matrix products", "attention", "optimizer", "copies and casts", "all other", "between")


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
        seconds, shares = step_shares(trainer, inputs)
    state = [value for one in trainer.optimizer.state.values() for value in one.values()]
    held = {
        "weights": sum(map(_bytes, trainer.model.parameters())),
        "gradients": gradients,
        "optimizer state": sum(map(_bytes, state)),
        "activations at their peak": activations,
    }
    return {
        "step_seconds": round(seconds, 3),
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "gib": {what: round(size / 2**30, 3) for what, size in held.items()},
    }


def step_shares(trainer: Any, inputs: Any) -> tuple[float, dict[str, float]]:
    """(seconds, share of each kind) of a whole step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watched

    with watched(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        trainer.training_step(trainer.model, inputs)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        seconds = time.perf_counter() - started
    total = dict.fromkeys(KINDS, 0.0)
    for event in found.events():
        total[kind_of(event)] += event.self_cpu_time_total / 1e6
    # An operator that is no operator of torch's is Python's time, as a custom function's own is.
    total["between"] += seconds - sum(total.values())
    return seconds, {kind: spent / seconds for kind, spent in total.items()}


def kind_of(event: Any) -> str:
    """What an event of the profiler counts as."""
    names = [event.name]
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    if any("attention" in name.lower() for name in names):
        return "attention"
    if any(name.startswith("Optimizer.step") for name in names):
        return "optimizer"
    if names[0] in PRODUCTS:
        return "matrix products"
    if names[0] in COPIES:
        return "copies and casts"
    return "all other" if names[0].startswith("aten::") else "between"


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
