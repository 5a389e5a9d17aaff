"""One thread for all process groups of an engine on a CPU, instead of one each: a plugin of vLLM.

vLLM makes fourteen groups of gloo, also for an engine that is one process, and torch gives each a device of its own
with a thread that wakes a hundred times a second. On few cores they slow what is computed beside them, also while the
engine rests. A device serves any number of groups.
Written for torch 2.13; `tests/contract/test_gloo.py` names what it leans on. Without it everything works as before.
"""

from datetime import timedelta
from typing import Any


def register() -> None:
    """Have groups that this process makes from now on share a device, where vLLM's platform is a CPU."""
    from torch.distributed import distributed_c10d
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        setattr(distributed_c10d, "ProcessGroupGloo", sharing(distributed_c10d.ProcessGroupGloo))  # noqa: B010


def sharing(gloo: Any) -> Any:
    """The class of torch, whose groups share a device; made at the first group, which reads the environment by then."""

    class OneLoop(gloo):
        device: Any = None

        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta = timedelta(minutes=30)) -> None:
            OneLoop.device = OneLoop.device or gloo.create_default_device()
            options = gloo._Options()
            options._timeout, options._devices = timeout, [OneLoop.device]
            super().__init__(store, rank, size, options)

    OneLoop.__module__ = gloo.__module__
    return OneLoop
