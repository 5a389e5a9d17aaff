"""What surrounds a run goes wrong: signals, a full disk, a slow disk, a clock that jumps.

Each case must end in a finished run with what an undisturbed one leaves, after at most one more start of the same
command: signals end the first start with 130 or 143, a full disk with status 1 and its name; a slow disk and a jump of
the wall clock, by a preloaded library, end nothing. Moments are drawn from the whole run by the case's number; one at
which the run is over, or that did not disturb it, is a miss, and another is drawn. The library leaves marks: it must be
in driver, sampler, scorer and learner, and what it does must have happened in them.
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
from tests.proof.chaos import SETTINGS
from tests.proof.outcome import SECONDS, TRACEBACK, differences, results, status_of, written_twice

KEYS = ("case", "number")
"""Fields of a line that name its case."""
SOURCE = Path(__file__).with_suffix(".c")
DISK_MIB = 3072
"""Ample for the run; what is free at the moment is taken away by one file."""
JUMPS = {"clock-forward": 86_400, "clock-back": -86_400}
WRITE_MICROSECONDS = 20_000
ROLES = {"sampler": "ray::LoggedSampler", "scorer": "ray::ShardScorer", "learner": "RayTrainWorker"}
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
        """Whether it is in a stage, so that its handlers are in place."""
        return any(line["event"] == "begin" for line in journal(self.out))

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
    """How a disturbed start went: whether it was met, and what is wrong with its end."""

    hit: bool
    fault: str | None = None


def told_end(status: int | None, printed: str) -> str:
    """For the log."""
    return f"status {status}: {printed[-1500:]}"


def signalled(place: Workplace, out: Path, moment: float, number: int) -> Disturbed:
    """A signal to the driver."""
    run = Run(place.config, out)
    running = run.let_run(moment)
    begun = run.has_begun()
    run.process.send_signal(number)
    status, printed = run.end()
    if not running or status == 0:
        return Disturbed(hit=False)
    # Before its handlers are in place a process ends as any other does.
    allowed = (128 + number,) if begun else (128 + number, -number)
    wrong = status not in allowed or TRACEBACK in printed
    return Disturbed(True, told_end(status, printed) if wrong else None)


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
    if not running or status == 0:
        return Disturbed(hit=False)
    wrong = status != 1 or TRACEBACK in printed or "No space left" not in printed
    return Disturbed(True, told_end(status, printed) if wrong else None)


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

    def fault(self, run: Run, what: str) -> str | None:
        """Roles of which a process has not the library, or in none of which it did `what`."""
        seen = {"driver": {run.process.pid}, **self._seen}
        bare = [role for role, pids in seen.items() if not pids or pids - self._pids("here")]
        spared = [role for role, pids in seen.items() if not pids & self._pids(what)]
        if bare:
            return f"without the library: {', '.join(bare)}"
        return f"not {what}: {', '.join(spared)}" if spared else None

    def _pids(self, what: str) -> set[int]:
        return {int(path.stem) for path in self.folder.glob(f"*.{what}")}


def slow_disk(place: Workplace, out: Path, _moment: float) -> Disturbed:
    """Every write of a file sleeps first."""
    marks = Marks(out)
    run = Run(place.config, out, **marks.variables(place), GPO_PROOF_WRITE_US=str(WRITE_MICROSECONDS))
    run.let_run(SECONDS, partial(marks.look, run))
    status, printed = run.end()
    return Disturbed(True, marks.fault(run, "slept") if status == 0 else told_end(status, printed))


def jumping_clock(place: Workplace, out: Path, moment: float, seconds: int) -> Disturbed:
    """The wall clock of all processes of the run jumps."""
    clock, marks = out.with_suffix(".clock"), Marks(out)
    run = Run(place.config, out, **marks.variables(place), GPO_PROOF_CLOCK=str(clock))
    running = run.let_run(moment, partial(marks.look, run))
    clock.write_text(str(seconds))
    run.let_run(SECONDS, partial(marks.look, run))
    status, printed = run.end()
    if status != 0:
        return Disturbed(True, told_end(status, printed))
    times = [line["time"] for line in journal(out)]
    # Late jumps are in no line of the journal.
    jumped = any(abs(later - earlier - seconds) < SECONDS for earlier, later in zip(times, times[1:], strict=False))
    return Disturbed(running and jumped, marks.fault(run, "jumped"))


CASES: dict[str, Callable[[Workplace, Path, float], Disturbed]] = {
    "sigterm": partial(signalled, number=signal.SIGTERM),
    "sigint": partial(signalled, number=signal.SIGINT),
    "full-disk": full_disk,
    "slow-disk": slow_disk,
    **{name: partial(jumping_clock, seconds=seconds) for name, seconds in JUMPS.items()},
}


def one_case(place: Workplace, name: str, number: int, folder: Path) -> dict[str, Any]:
    """Disturb a run until it is met, give its command once more, and compare."""
    started = time.monotonic()
    for misses in range(MOST_MISSES):
        out = folder / f"{name}-{number}-{misses}"
        moment = Random(f"{name}/{number}/{misses}").uniform(0.05, 0.95) * place.seconds
        try:
            found = CASES[name](place, out, moment)
            fault = found.fault or (after(place, out / "run" if name == "full-disk" else out) if found.hit else None)
        finally:
            if os.path.ismount(out):
                subprocess.run(["umount", "--lazy", out], check=True)
            shutil.rmtree(out, ignore_errors=True)
        if found.hit or fault:
            break
    return {
        "case": name,
        "number": number,
        "misses": misses,
        "moment_seconds": round(moment, 1),
        "fault": fault if found.hit or fault else "never met",
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
