"""A start of a run that is to be disturbed, where it runs, and how it went; the cases are in `surroundings`."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.tiny_run import environment, journal
from tests.proof.outcome import status_of
from tests.proof.workload import Workload, times_of

MOMENTS = (0.05, 0.95)
"""Of an undisturbed run, in shares: the first and the last moment that is drawn."""


class Run:
    """A start of the command."""

    def __init__(self, work: Workload, out: Path, **variables: str) -> None:
        self.out, self._work, self._said = out, work, out.with_suffix(".said")
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                work.command(out),
                env={**environment(), **variables},
                cwd=work.config.parent,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def let_run(self, seconds: float, watch: Callable[[], None] = lambda: None) -> bool:
        """Wait for the moment, or the end; whether it still runs."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            watch()
            time.sleep(0.05)
        return self.process.poll() is None

    def has_begun(self) -> bool:
        """Whether its journal has a line, so that its handlers are in place."""
        return bool(journal(self.out))

    def was_over_at(self, moment: float) -> bool:
        """Whether its last stage was done at a wall time: behind it the process only says so and ends."""
        return times_of(self.out, "stage").get(self._work.last_stage, float("inf")) <= moment

    def end(self) -> tuple[int | None, str]:
        """Status, None when it had to be ended, and what it printed."""
        status = status_of(self.process)
        return status, self._said.read_text("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the cases run."""

    work: Workload
    library: Path
    seconds: float
    """Of an undisturbed run."""
    expected: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Disturbed:
    """How a disturbed start went: what is wrong with its end, and why it was not disturbed, where it was not."""

    fault: str | None = None
    missed: str | None = None
    done: str | None = None
    """What was done to it, where the moment does not say it."""


RUN_WAS_OVER = Disturbed(missed="the run was over")


def told_end(status: int | None, printed: str) -> str:
    """For the log."""
    return f"status {status}: {printed[-1500:]}"
