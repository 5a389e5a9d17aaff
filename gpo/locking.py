"""One process at a time in a directory."""

import fcntl
from pathlib import Path
from typing import IO


def hold(file: Path) -> IO[str] | None:
    """The lock file, held until it is closed or this process ends; None: another process holds it.

    Raises OSError where no such file can be.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    held = file.open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    return held
