"""Where the time of a piece of work goes, by torch's profiler: each operator's own time counts once, by the first of

attention         all within attention's own function, its products and casts too
optimizer         all within the optimizer's step
matrix products   those of linear layers and of the head
copies and casts  where an operator only moves numbers or changes their type
all other         what works on each number by itself, norms, sums, clipping; kernels of vLLM's too
between           the time in which no operator runs: Python, the autograd engine, tokenizers
"""

import time
from collections.abc import Callable
from typing import Any

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmm_", "aten::mv")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::cat", "aten::contiguous")
KINDS = ("matrix products", "attention", "optimizer", "copies and casts", "all other", "between")


def seconds_by_kind(work: Callable[[], Any]) -> dict[str, float]:
    """Those of one time; their sum is that of the whole."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    total = dict.fromkeys(KINDS, 0.0)
    for event in found.events():
        total[kind_of(event)] += event.self_cpu_time_total / 1e6
    # An operator that is no operator of torch's is Python's time, as a custom function's own is.
    total["between"] += seconds - sum(total.values())
    return total


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
    return "all other" if names[0].startswith(("aten::", "_C::")) else "between"
