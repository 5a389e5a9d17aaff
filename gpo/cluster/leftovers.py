"""Processes that outlive a Ray of our own.

Now and then a process of Ray 2.60 hangs in its own exit, which Ray has taken for done by then: the last reference to a
publisher goes while the queue that it publishes to is torn down under a lock (`Publisher::~Publisher` within
`boost::asio::detail::scheduler::shutdown`). Nobody would ever end it.
"""

import logging
from contextlib import suppress

import psutil

logger = logging.getLogger(__name__)

TITLE = "ray::"
PATIENCE_SECONDS = 5.0


def workers_of_ray() -> list[psutil.Process]:
    """Ray's workers below this process, those that hang in their exit too."""
    return [process for process in psutil.Process().children(recursive=True) if _title(process).startswith(TITLE)]


def end_leftovers(workers: list[psutil.Process], seconds: float = PATIENCE_SECONDS) -> None:
    """Kill those that are still there, to be called behind Ray's own shutdown."""
    _, left = psutil.wait_procs(workers, timeout=seconds)
    for process in left:
        logger.info("%s (%d) outlives Ray and is killed", _title(process), process.pid)
        with suppress(psutil.NoSuchProcess):  # It ended by itself meanwhile.
            process.kill()
    psutil.wait_procs(left, timeout=seconds)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # It ended meanwhile.
        return ""
