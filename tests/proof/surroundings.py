"""What surrounds a run goes wrong: signals, a full disk, a slow disk, a clock that jumps.

Each case must end in a finished run with the token ids of an undisturbed one, after at most one more start of the same
command: signals end the first start with 130 or 143, a full disk with status 1 and its name; a slow disk and a jump of
the wall clock, by a preloaded library, end nothing. Moments are drawn from the whole run by the case's number.
The library leaves a mark for every process that has it; driver, sampler, scorer and learner must all be marked.
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

from tests.e2e.tiny_run import command, descendants, environment, make_workplace
from tests.proof.case_log import keep, not_yet, told
from tests.proof.chaos import SECONDS, SETTINGS, answers

KEYS = ("case", "number")
"""Fields of a line that name its case."""
SOURCE = Path(__file__).with_suffix(".c")
DISK_MIB = 3072
"""Ample for the run; what is free at the moment is taken away by one file."""
JUMPS = {"clock-forward": 86_400, "clock-back": -86_400}
WRITE_MICROSECONDS = 20_000
ROLES = {"sampler": "ray::LoggedSampler", "scorer": "ray::ShardScorer", "learner": "RayTrainWorker"}
"""What must have the library beside the driver -> how its process is called."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the cases run."""

    config: Path
    library: Path
    seconds: float
    """Of an undisturbed run."""
    expected: dict[str, Any]

    def start(self, out: Path, **variables: str) -> "subprocess.Popen[str]":
        """The command of a run."""
        return subprocess.Popen(
            command(self.config, out, *SETTINGS),
            env={**environment(), **variables},
            cwd=self.config.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


class Preloaded:
    """A run with the library, and which of its processes have it."""

    def __init__(self, place: Workplace, out: Path, **variables: str) -> None:
        self._marks = out.with_suffix(".marks")
        self._marks.mkdir()
        self.process = place.start(
            out,
            LD_PRELOAD=str(place.library),
            RAY_LD_PRELOAD_ON_WORKERS="1",
            GPO_PROOF_MARKS=str(self._marks),
            **variables,
        )
        self._seen: dict[str, set[int]] = {"driver": {self.process.pid}, **{role: set() for role in ROLES}}

    def let_run(self, seconds: float) -> None:
        """Wait for the moment, or the end, and look at who is there."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            for role, title in ROLES.items():
                self._seen[role] |= {found.pid for found in descendants(self.process, title)}
            time.sleep(0.2)

    def fault(self) -> str | None:
        """Wait for the end; what is wrong with it, or with the marks."""
        self.let_run(SECONDS)
        printed = printed_at_end(self.process)
        if self.process.returncode != 0:
            return f"status {self.process.returncode}: {printed[-1500:]}"
        marked = {int(path.name) for path in self._marks.iterdir()}
        bare = [role for role, pids in self._seen.items() if not pids or pids - marked]
        return f"without the library: {', '.join(bare)}" if bare else None


def printed_at_end(process: "subprocess.Popen[str]") -> str:
    """What a run printed; one that does not end is ended."""
    try:
        return process.communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[1] + "\nno end"


def let_run(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Wait for the moment, or the end."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def signalled(place: Workplace, out: Path, moment: float, number: int) -> str | None:
    """A signal to the driver; what is wrong with its end."""
    process = place.start(out)
    let_run(process, moment)
    process.send_signal(number)
    printed = printed_at_end(process)
    # Before its handlers are in place, and after its last line, a process ends as any other does.
    if process.returncode not in (128 + number, -number, 0) or "Traceback" in printed:
        return f"status {process.returncode}: {printed[-1500:]}"
    return None


def full_disk(place: Workplace, out: Path, moment: float) -> str | None:
    """No space from the moment on, until the first start has ended."""
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", out], check=True)
    process = place.start(out / "run")
    let_run(process, moment)
    filler = out / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    printed = printed_at_end(process)
    filler.unlink()
    if process.returncode == 0:
        return None
    if process.returncode != 1 or "Traceback" in printed or "No space left" not in printed:
        return f"status {process.returncode}: {printed[-1500:]}"
    return None


def slow_disk(place: Workplace, out: Path, _moment: float) -> str | None:
    """Every write of a file sleeps first."""
    return Preloaded(place, out, GPO_PROOF_WRITE_US=str(WRITE_MICROSECONDS)).fault()


def jumping_clock(place: Workplace, out: Path, moment: float, seconds: int) -> str | None:
    """The wall clock of all processes of the run jumps."""
    clock = out.with_suffix(".clock")
    run = Preloaded(place, out, GPO_PROOF_CLOCK=str(clock))
    run.let_run(moment)
    clock.write_text(str(seconds))
    return run.fault()


CASES: dict[str, Callable[[Workplace, Path, float], str | None]] = {
    "sigterm": partial(signalled, number=signal.SIGTERM),
    "sigint": partial(signalled, number=signal.SIGINT),
    "full-disk": full_disk,
    "slow-disk": slow_disk,
    **{name: partial(jumping_clock, seconds=seconds) for name, seconds in JUMPS.items()},
}


def one_case(place: Workplace, name: str, number: int, out: Path) -> dict[str, Any]:
    """Disturb a run, give its command once more, and compare."""
    moment = Random(f"{name}/{number}").uniform(0.05, 0.95) * place.seconds
    started = time.monotonic()
    try:
        fault = CASES[name](place, out, moment)
        run = out / "run" if name == "full-disk" else out
        again = place.start(run)
        printed = printed_at_end(again)
        if fault is None and again.returncode != 0:
            fault = f"started again: status {again.returncode}: {printed[-1500:]}"
        if fault is None and answers(run) != place.expected:
            fault = "finished with other samples"
    finally:
        if os.path.ismount(out):
            subprocess.run(["umount", "--lazy", out], check=True)
        shutil.rmtree(out, ignore_errors=True)
    return {
        "case": name,
        "number": number,
        "moment_seconds": round(moment, 1),
        "fault": fault,
        "seconds": round(time.monotonic() - started, 1),
    }


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
            place = Workplace(config, library, 0.0, {})
            printed = printed_at_end(process := place.start(folder / "undisturbed"))
            assert process.returncode == 0, printed
            place = Workplace(config, library, time.monotonic() - before, answers(folder / "undisturbed"))
        for name, number in left:
            line = one_case(place, name, number, folder / f"{name}-{number}")
            keep(options.log, line)
    return told(options.log, KEYS, wanted)


if __name__ == "__main__":
    sys.exit(main())
