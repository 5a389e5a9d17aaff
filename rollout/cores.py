"""Cores that belong to one process alone.

vLLM's OpenMP threads spin at barriers, so an engine that shares its cores runs five to ten times slower. Each engine,
and a scorer that works beside one, claims cores by locking a file a core; the kernel gives them back when the process
ends, however it ends. Claims hold across runs of one user on a machine.
"""

import fcntl
import logging
import os
import random
import tempfile
import time
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "GPO_CORE_LOCKS"
"""Another folder for the locks, for containers that share cores but not /tmp."""

_held: dict[int, int] = {}
"""Core -> open file of its lock; open for the life of the process."""


def claim_cores(count: int, wait_seconds: float = 20.0) -> list[int]:
    """Bind this process to `count` cores that no other process holds; returns them.

    An engine that was just killed may hold its cores a moment longer, hence the wait; all are claimed at once, so that
    two processes never wait for each other's. Where there are not enough, the process stays unbound and the list is
    empty: slow, but never bound to another's cores.
    """
    deadline = time.monotonic() + wait_seconds
    present = _physical_first(sorted(os.sched_getaffinity(0)))
    count = min(count, len(present))
    while True:
        found = _hold_all(present, count)
        if found == count:
            cores = sorted(_held)
            _bind(cores)
            logger.info("cores %s belong to this process alone", ", ".join(map(str, cores)))
            return cores
        if time.monotonic() > deadline:
            break
        time.sleep(random.uniform(0.1, 0.3))
    logger.warning("only %d of %d cores are free of engines: not bound to any, expect it to be slow", found, count)
    return []


def _hold_all(present: list[int], count: int) -> int:
    """How many could be held; when fewer than `count`, none of them is afterwards."""
    for core in present:
        if len(_held) < count:
            _try_to_hold(core)
    found = len(_held)
    if found < count:
        release_cores()
    return found


def release_cores() -> None:
    """Give the cores back; for tests and for an engine that finds too few."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


def _folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"gpo-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _try_to_hold(core: int) -> None:
    if core in _held:
        return
    handle = os.open(_folder() / f"core-{core}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return
    _held[core] = handle


def _physical_first(cores: list[int]) -> list[int]:
    """One logical core of each physical one first, their siblings last."""
    seen: set[str] = set()
    first: list[int] = []
    siblings: list[int] = []
    for core in cores:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        group = path.read_text().strip() if path.is_file() else str(core)
        (siblings if group in seen else first).append(core)
        seen.add(group)
    return first + siblings


def _bind(cores: list[int]) -> None:
    """All threads there are; those that come later inherit it."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # It ended meanwhile.
