"""A slow disk and a clock that jumps, by a library (`preloaded.c`) that every process of a run loads first.

It leaves marks: it must be in driver, sampler, scorer and learner, and what it does must have happened in them.
"""

import subprocess
from functools import partial
from pathlib import Path

from tests.e2e.tiny_run import descendants, journal
from tests.proof.disturbed import MOMENTS, RUN_WAS_OVER, Disturbed, Run, Workplace, told_end
from tests.proof.outcome import SECONDS, TRACEBACK
from tests.proof.workload import TITLES

SOURCE = Path(__file__).with_suffix(".c")
WRITE_MICROSECONDS = (5_000, 40_000)
"""How long a write takes at the first moment that is drawn, and at the last."""
ROLES = {role: TITLES[role] for role in ("sampler", "scorer", "learner")}
"""What must have the library beside the driver -> how its process is called."""


def build(library: Path) -> None:
    """Compile it; raises FileNotFoundError where there is no gcc."""
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)


class Marks:
    """Which processes of a run were seen, and what the library did in them."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_suffix(".marks")
        self.folder.mkdir()
        self._seen: dict[str, set[int]] = {role: set() for role in ROLES}

    def variables(self, place: Workplace) -> dict[str, str]:
        """Environment of a run with the library."""
        library = {"LD_PRELOAD": str(place.library), "RAY_LD_PRELOAD_ON_WORKERS": "1"}
        return {**library, "GPO_PROOF_MARKS": str(self.folder)}

    def look(self, run: Run) -> None:
        """Who is there now."""
        for role, title in ROLES.items():
            self._seen[role] |= {found.pid for found in descendants(run.process, title)}

    def bare(self, run: Run) -> str | None:
        """Roles of which a process has not the library."""
        here = self._pids("here")
        roles = [role for role, pids in self._all(run).items() if not pids or pids - here]
        return f"without the library: {', '.join(roles)}" if roles else None

    def spared(self, run: Run, what: str) -> str | None:
        """Roles in no process of which it did `what`."""
        did = self._pids(what)
        roles = [role for role, pids in self._all(run).items() if not pids & did]
        return f"not {what}: {', '.join(roles)}" if roles else None

    def _all(self, run: Run) -> dict[str, set[int]]:
        return {"driver": {run.process.pid}, **self._seen}

    def _pids(self, what: str) -> set[int]:
        return {int(path.stem) for path in self.folder.glob(f"*.{what}")}


def went_wrong(status: int | None, printed: str) -> str | None:
    """What is wrong with the end of a start that nothing of this should have ended, or made print a traceback."""
    return told_end(status, printed) if status != 0 or TRACEBACK in printed else None


def write_microseconds(place: Workplace, moment: float) -> int:
    """How long each write takes in the case of a moment: no two cases are alike."""
    first, last = MOMENTS
    shortest, longest = WRITE_MICROSECONDS
    return round(shortest + (moment / place.seconds - first) / (last - first) * (longest - shortest))


def slow_disk(place: Workplace, out: Path, moment: float) -> Disturbed:
    """Every write of a file sleeps first."""
    marks, microseconds = Marks(out), write_microseconds(place, moment)
    run = Run(place.work, out, **marks.variables(place), GPO_PROOF_WRITE_US=str(microseconds))
    run.let_run(SECONDS, partial(marks.look, run))
    status, printed = run.end()
    fault = went_wrong(status, printed) or marks.bare(run) or marks.spared(run, "slept")
    return Disturbed(fault, done=f"each write took {microseconds / 1000:.1f} ms")


def jumping_clock(place: Workplace, out: Path, moment: float, seconds: int) -> Disturbed:
    """The wall clock of all processes of the run jumps."""
    clock, marks = out.with_suffix(".clock"), Marks(out)
    run = Run(place.work, out, **marks.variables(place), GPO_PROOF_CLOCK=str(clock))
    running = run.let_run(moment, partial(marks.look, run))
    clock.write_text(str(seconds))
    run.let_run(SECONDS, partial(marks.look, run))
    status, printed = run.end()
    if fault := went_wrong(status, printed):
        return Disturbed(fault)
    times = [line["time"] for line in journal(out)]
    jumped = any(abs(later - earlier - seconds) < SECONDS for earlier, later in zip(times, times[1:], strict=False))
    late = marks.spared(run, "jumped") if jumped else "no line of the journal has the jump"
    return Disturbed(marks.bare(run), late if running else RUN_WAS_OVER.missed)
