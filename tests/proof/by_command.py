"""A case of fuzzing as a command of its own: how it ends, what it says, and the most memory that it holds."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    said: str
    """On standard error."""
    mib: int
    """The most that it held at a look, as the kernel keeps count of it."""


def run_command(module: str, words: Sequence[str], seconds: float, most_mib: int) -> Ended | None:
    """`python -m MODULE` with these words; None when it did not end in time.

    One that holds more than `most_mib` is killed, before it takes the memory of others.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryFile() as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words], env=environment, stdout=subprocess.DEVNULL, stderr=stream
        )
        end, mib = time.monotonic() + seconds, 0
        while process.poll() is None and time.monotonic() < end:
            mib = max(mib, mib_of("VmHWM", process.pid))
            if mib > most_mib:
                break
            time.sleep(LOOK_SECONDS)
        late = process.poll() is None and mib <= most_mib
        process.kill()
        status = process.wait()
        stream.seek(0)
        return None if late else Ended(status, stream.read().decode("utf-8", "replace"), mib)


def mib_of(field: str, process: int | str = "self") -> int:
    """A field of /proc/…/status: VmRSS is what is held now, VmHWM the most since it was reset, VmSize addresses.

    0 where the process has ended.
    """
    try:
        found = re.findall(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[0]) >> 10 if found else 0
