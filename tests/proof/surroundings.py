"""What surrounds a run goes wrong: signals, a full disk, a slow disk, a clock that jumps.

Each case must end in a finished run with what an undisturbed one leaves, after at most one more start of the same
command: signals end the first start with 130 or 143, a full disk with status 1 and its name; a slow disk and a jump of
the wall clock, by a preloaded library, end nothing. Moments are drawn from the whole run by the case's number. One that
did not disturb the run is a miss, which the log keeps with its reason, and another is drawn: the run was over; a full
disk left what an undisturbed run leaves. A run that ends well in spite of a signal has lost it, which is a fault unless
its last stage was done before. The library leaves marks: it must be in driver, sampler, scorer and learner, and what it
does must have happened in them; a jump that comes too late for that is a miss.
Each case is a line of the log; a start with the same log goes on behind it. Needs gcc, and root for the full disk
(a tmpfs); without them nothing is run and the status is 1.

    python -m tests.proof.surroundings --moments 1 --log runs/surroundings.jsonl     (one to three minutes a case)
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.e2e.tiny_run import command, descendants, environment, journal, make_workplace
from tests.proof.case_log import keep, not_yet, told
from tests.proof.outcome import SECONDS, TRACEBACK, differences, results, status_of, written_twice
from tests.proof.workload import LAST_STAGE, SETTINGS, TITLES, times_of

KEYS = ("case", "number")
"""Fields of a line that name its case."""
SOURCE = Path(__file__).with_suffix(".c")
DISK_MIB = 3072
"""Ample for the run; what is free at the moment is taken away by one file."""
JUMPS = {"clock-forward": 86_400, "clock-back": -86_400}
WRITE_MICROSECONDS = 20_000
ROLES = {role: TITLES[role] for role in ("sampler", "scorer", "learner")}
"""What must have the library beside the driver -> how its process is called."""
MOST_MISSES = 5


class Run:
    """A start of the command."""

    def __init__(self, config: Path, out: Path, **variables: str) -> None:
        self.out, self._said = out, out.with_suffix(".said")
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                command(config, out, *SETTINGS),
                env={**environment(), **variables},
                cwd=config.parent,
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
        return times_of(self.out, "stage").get(LAST_STAGE, float("inf")) <= moment

    def end(self) -> tuple[int | None, str]:
        """Status, None when it had to be ended, and what it printed."""
        status = status_of(self.process)
        return status, self._said.read_text("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the cases run."""

    config: Path
    library: Path
    seconds: float
    """Of an undisturbed run."""
    expected: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Disturbed:
    """How a disturbed start went: what is wrong with its end, and why it was not disturbed, where it was not."""

    fault: str | None = None
    missed: str | None = None


RUN_WAS_OVER = Disturbed(missed="the run was over")


def told_end(status: int | None, printed: str) -> str:
    """For the log."""
    return f"status {status}: {printed[-1500:]}"


def signalled(place: Workplace, out: Path, moment: float, number: int) -> Disturbed:
    """A signal to the driver."""
    run = Run(place.config, out)
    running = run.let_run(moment)
    begun, sent = run.has_begun(), time.time()
    run.process.send_signal(number)
    status, printed = run.end()
    over = run.was_over_at(sent)
    if not running or (over and status == 0):
        return RUN_WAS_OVER
    if status == 0:
        return Disturbed(f"the signal was lost: {told_end(status, printed)}")
    # Before its handlers are in place, and in its very last moments, a process ends as any other does.
    allowed = (128 + number,) if begun and not over else (128 + number, -number)
    wrong = status not in allowed or TRACEBACK in printed
    return Disturbed(told_end(status, printed) if wrong else None)


def full_disk(place: Workplace, out: Path, moment: float) -> Disturbed:
    """No space from the moment on, until the first start has ended."""
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", out], check=True)
    run = Run(place.config, out / "run")
    running = run.let_run(moment)
    filler = out / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    status, printed = run.end()
    filler.unlink()
    return judged_on_full_disk(place, run.out, status, printed) if running else RUN_WAS_OVER


def judged_on_full_disk(place: Workplace, out: Path, status: int | None, printed: str) -> Disturbed:
    """One that wanted no more space, or made some, may end well, but then nothing may be missing."""
    if status == 0 and TRACEBACK not in printed:
        fault = differences(out, place.expected) or written_twice(out)
        return Disturbed(f"status 0, and {fault}") if fault else Disturbed(missed="it had space enough to the end")
    wrong = status != 1 or TRACEBACK in printed or "No space left" not in printed
    return Disturbed(told_end(status, printed) if wrong else None)


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


def slow_disk(place: Workplace, out: Path, _moment: float) -> Disturbed:
    """Every write of a file sleeps first."""
    marks = Marks(out)
    run = Run(place.config, out, **marks.variables(place), GPO_PROOF_WRITE_US=str(WRITE_MICROSECONDS))
    run.let_run(SECONDS, partial(marks.look, run))
    status, printed = run.end()
    return Disturbed(marks.bare(run) or marks.spared(run, "slept") if status == 0 else told_end(status, printed))


def jumping_clock(place: Workplace, out: Path, moment: float, seconds: int) -> Disturbed:
    """The wall clock of all processes of the run jumps."""
    clock, marks = out.with_suffix(".clock"), Marks(out)
    run = Run(place.config, out, **marks.variables(place), GPO_PROOF_CLOCK=str(clock))
    running = run.let_run(moment, partial(marks.look, run))
    clock.write_text(str(seconds))
    run.let_run(SECONDS, partial(marks.look, run))
    status, printed = run.end()
    if status != 0:
        return Disturbed(told_end(status, printed))
    times = [line["time"] for line in journal(out)]
    jumped = any(abs(later - earlier - seconds) < SECONDS for earlier, later in zip(times, times[1:], strict=False))
    late = marks.spared(run, "jumped") if jumped else "no line of the journal has the jump"
    return Disturbed(marks.bare(run), late if running else RUN_WAS_OVER.missed)


CASES: dict[str, Callable[[Workplace, Path, float], Disturbed]] = {
    "sigterm": partial(signalled, number=signal.SIGTERM),
    "sigint": partial(signalled, number=signal.SIGINT),
    "full-disk": full_disk,
    "slow-disk": slow_disk,
    **{name: partial(jumping_clock, seconds=seconds) for name, seconds in JUMPS.items()},
}


def one_case(place: Workplace, name: str, number: int, folder: Path) -> dict[str, Any]:
    """Disturb a run until it is met, give its command once more, and compare."""
    started, misses = time.monotonic(), list[str]()
    for tries in range(MOST_MISSES):
        out = folder / f"{name}-{number}-{tries}"
        moment = Random(f"{name}/{number}/{tries}").uniform(0.05, 0.95) * place.seconds
        try:
            found = CASES[name](place, out, moment)
            fault = found.fault
            if fault is None and found.missed is None:
                fault = after(place, out / "run" if name == "full-disk" else out)
        finally:
            if os.path.ismount(out):
                subprocess.run(["umount", "--lazy", out], check=True)
            shutil.rmtree(out, ignore_errors=True)
        if fault or found.missed is None:
            break
        misses.append(f"{moment:.1f} s: {found.missed}")
    return {
        "case": name,
        "number": number,
        "misses": misses,
        "moment_seconds": round(moment, 1),
        "fault": fault or (found.missed and "never met"),
        "seconds": round(time.monotonic() - started, 1),
    }


def after(place: Workplace, out: Path) -> str | None:
    """Give the command again; what is wrong with what is left."""
    status, printed = Run(place.config, out).end()
    if status != 0 or TRACEBACK in printed:
        return f"started again: {told_end(status, printed)}"
    return differences(out, place.expected) or written_twice(out)


def main() -> int:
    """All cases that the log does not have yet; status 1 when one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1, help="of each kind of case")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--log", type=Path, default=Path("runs/surroundings.jsonl"))
    options = parser.parse_args()
    if os.geteuid() != 0 and "full-disk" in options.only:
        print("full-disk: mounting a tmpfs needs root; --only leaves it out", file=sys.stderr)
        return 1
    options.log.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(name, number) for name in options.only for number in range(options.moments)]
    left = not_yet(options.log, KEYS, wanted)
    with tempfile.TemporaryDirectory(prefix="surroundings-") as folder_name:
        folder = Path(folder_name)
        library = folder / "surroundings.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        config = make_workplace(folder)
        if left:
            before = time.monotonic()
            status, printed = Run(config, folder / "undisturbed").end()
            assert status == 0, printed
            place = Workplace(config, library, time.monotonic() - before, results(folder / "undisturbed"))
        for name, number in left:
            keep(options.log, one_case(place, name, number, folder))
    return told(options.log, KEYS, wanted)


if __name__ == "__main__":
    sys.exit(main())
