"""The memory that this machine has, and what a number of each type takes of it."""

import os
from pathlib import Path

import psutil

from gpo.errors import UserError

GIB = 1 << 30
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def available_memory_gib() -> float:
    """What this machine, or its container, still has; GPO_MEMORY_GIB in the environment lowers it."""
    available = min(psutil.virtual_memory().available / GIB, _container_gib(Path("/sys/fs/cgroup")))
    limit = os.environ.get("GPO_MEMORY_GIB")
    if not limit:
        return available
    try:
        lowered = float(limit)
    except ValueError:
        lowered = -1.0
    if not lowered >= 0:
        raise UserError(f"GPO_MEMORY_GIB = {limit!r}: expected a number of GiB, for example 7.5; mend or unset it")
    return min(available, lowered)


def _container_gib(cgroup: Path) -> float:
    """What the memory limit of a container (cgroup v2 or v1) leaves; infinite where there is none.

    File cache that the kernel can drop does not count as used.
    """
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            texts = [(cgroup / name).read_text() for name in (limit, used, statistics)]
        except OSError:
            continue
        if texts[0].strip() == "max":
            return float("inf")
        droppable = sum(int(line.split()[1]) for line in texts[2].splitlines() if line.startswith("inactive_file "))
        return (int(texts[0]) - int(texts[1]) + droppable) / GIB
    return float("inf")
