"""What surrounds a run goes wrong: signals, a full disk, a slow disk, a clock that jumps.

Each case must end in a finished run with what an undisturbed one leaves, after at most one more start of the same
command: signals end the first start with 130 or 143, a full disk with status 1 and its name; a slow disk and a jump of
the wall clock, by a preloaded library, end nothing. Moments are drawn from the whole run by the case's number, and so
is how slow a disk is. A moment that did not disturb the run is a miss, which the log keeps with its reason, and another
is drawn: the run was over; a full disk left what an undisturbed run leaves. A run that ends well in spite of a signal
has lost it, which is a fault unless its last stage was done before. The library leaves marks: it must be in driver,
sampler, scorer and learner, and what it does must have happened in them; a jump that comes too late for that is a miss.
Each case is a line of the log, with the seed of its last moment; a start with the same log goes on behind it, and the
end tells all seeds. Needs gcc, and root for the full disk (a tmpfs); without them nothing is run and the status is 1.

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
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.e2e.tiny_run import make_workplace
from tests.proof.allowance import Allowance
from tests.proof.case_log import keep, not_yet, told
from tests.proof.disturbed import MOMENTS, RUN_WAS_OVER, Disturbed, Run, Workplace, told_end
from tests.proof.outcome import TRACEBACK, differences, results, written_twice
from tests.proof.preloaded import build, jumping_clock, slow_disk
from tests.proof.workload import Workload

KEYS = ("case", "number")
"""Fields of a line that name its case."""
DISK_MIB = 3072
"""Ample for the run; what is free at the moment is taken away by one file."""
JUMPS = {"clock-forward": 86_400, "clock-back": -86_400}
MOST_MISSES = 5


def signalled(place: Workplace, out: Path, moment: float, number: int) -> Disturbed:
    """A signal to the driver."""
    run = Run(place.work, out)
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
    run = Run(place.work, out / "run")
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
        seed = f"{name}/{number}/{tries}"
        moment = Random(seed).uniform(*MOMENTS) * place.seconds
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
        "seed": seed,
        "misses": misses,
        "moment_seconds": round(moment, 1),
        "done": found.done,
        "fault": fault or (found.missed and "never met"),
        "seconds": round(time.monotonic() - started, 1),
    }


def after(place: Workplace, out: Path) -> str | None:
    """Give the command again; what is wrong with what is left."""
    status, printed = Run(place.work, out).end()
    if status != 0 or TRACEBACK in printed:
        return f"started again: {told_end(status, printed)}"
    return differences(out, place.expected) or written_twice(out)


def main() -> int:
    """All cases that the log does not have yet; status 1 when one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1, help="of each kind of case")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--iterations", type=int, default=2, help="of a run")
    parser.add_argument("--minutes", type=float, help="begin no case later, in an order of the commit's own")
    parser.add_argument("--log", type=Path, default=Path("runs/surroundings.jsonl"))
    options = parser.parse_args()
    if os.geteuid() != 0 and "full-disk" in options.only:
        print("full-disk: mounting a tmpfs needs root; --only leaves it out", file=sys.stderr)
        return 1
    options.log.parent.mkdir(parents=True, exist_ok=True)
    allowance = Allowance(options.minutes)
    wanted = [(name, number) for name in options.only for number in range(options.moments)]
    left = not_yet(options.log, KEYS, wanted)
    with tempfile.TemporaryDirectory(prefix="surroundings-") as folder_name:
        folder = Path(folder_name)
        library = folder / "surroundings.so"
        build(library)
        work = Workload(make_workplace(folder), options.iterations)
        if left:
            before = time.monotonic()
            status, printed = Run(work, folder / "undisturbed").end()
            assert status == 0, printed
            place = Workplace(work, library, time.monotonic() - before, results(folder / "undisturbed"))
        for place_in_order, (name, number) in enumerate(allowance.order(left)):
            # One in any case: a proof of nothing would be none.
            if place_in_order and allowance.is_over(name):
                continue
            keep(options.log, one_case(place, name, number, folder))
    print(allowance.told(), end="")
    return told(options.log, KEYS, wanted, lambda line: line.get("seed"))


if __name__ == "__main__":
    sys.exit(main())
