"""Fuzzing: damaged configs, prompts, preference files and run directories through the command line's own entry.

Run: python -m tests.proof.fuzz --cases 400 --log runs/fuzz.jsonl     (make fuzz; make fuzz-full does 5,000)

A case is (target, seed). It must end with status 0, 1 or 2 within its time and memory, without a traceback, and not
with 0 where the input is certainly wrong. Cases run in this process; every hundredth also as a command of its own,
which must end with the same status. The log has a line a case, and a start with the same log goes on behind it.
"""

import argparse
import contextlib
import io
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from gpo.cli import main as gpo_main
from gpo.files import read_json_lines
from gpo.logs import OURS
from tests.proof.case_log import commits, keep, not_yet
from tests.proof.fuzz_targets import TARGETS, Prepared

SECONDS_A_CASE = 60
MOST_MIB_A_CASE = 1024
"""A case may hold so much more at its peak than there was before it; four times that of addresses are refused to it."""
MOST_GROWTH_MIB = 1024
"""Memory of this process may grow by so much over all cases, from the end of the warm-up."""
BY_COMMAND_EVERY = 100
REPOSITORY = Path(__file__).parents[2]


class TooLongError(BaseException):
    """A case that did not end; no handler of ordinary errors may swallow it."""


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises TooLongError in the main thread."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def own_mib(field: str) -> int:
    """A field of /proc/self/status: VmRSS is what is held now, VmHWM the most since it was reset, VmSize addresses."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) >> 10


class Peak:
    """The most that this process held inside, above what it held before."""

    mib = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Addresses far beyond the bound are refused: that ends a case with an error, not this process."""
        before = own_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, ((own_mib("VmSize") + 4 * MOST_MIB_A_CASE) << 20, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
            self.mib = own_mib("VmHWM") - before


def in_process(words: list[str]) -> tuple[int, str]:
    """Status and what was printed; an exception is status -1 with its traceback, a hang -2."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            with deadline(SECONDS_A_CASE):
                status = gpo_main(words)
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        except TooLongError:
            status = -2
        except BaseException:
            printed.write(traceback.format_exc())
            status = -1
    for package in OURS:
        logging.getLogger(package).handlers.clear()
    return status, printed.getvalue()


def by_command(words: list[str]) -> int:
    """Status of the same words in a process of their own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "gpo", *words], env=environment, capture_output=True, timeout=4 * SECONDS_A_CASE
    )
    return done.returncode


def fault_of(case: Prepared, status: int, printed: str, grown_mib: int) -> str | None:
    """What is wrong with how a case ended."""
    if grown_mib > MOST_MIB_A_CASE:
        return f"grew by {grown_mib} MiB"
    if status == -2:
        return f"no end within {SECONDS_A_CASE} s"
    if status not in (0, 1, 2):
        return f"status {status}"
    if "Traceback (most recent call last)" in printed:
        return "a traceback"
    if status != 0 and "gpo" not in printed:
        return f"status {status} without a message"
    if case.wrong and status == 0:
        return "status 0 for input that is certainly wrong"
    return None


def run_case(name: str, seed: int, workplace: Path, folder: Path) -> dict[str, Any]:
    """Prepare, run and judge a case; returns its line of the log."""
    case = TARGETS[name](workplace, folder, Random(f"{name}/{seed}"))
    started, peak = time.monotonic(), Peak()
    with peak.measured():
        status, printed = in_process(case.words)
    fault = fault_of(case, status, printed, peak.mib)
    if fault is None and seed % BY_COMMAND_EVERY == 0:
        case = TARGETS[name](workplace, folder, Random(f"{name}/{seed}"))
        alone = by_command(case.words)
        if alone != status:
            fault = f"status {status} in process, {alone} by command"
    line = {"target": name, "seed": seed, "done": case.done, "wrong": case.wrong, "status": status, "fault": fault}
    if fault is not None:
        line |= {"words": case.words, "printed": printed[-3000:]}
    return line | {"seconds": round(time.monotonic() - started, 3), "grown_mib": peak.mib}


def main() -> int:
    """All cases that the log does not have yet; status 1 when any has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400, help="in all, shared out among the targets")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    names = options.only or sorted(TARGETS)
    wanted = [(names[n % len(names)], options.first_seed + n // len(names)) for n in range(options.cases)]
    start_mib = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        from tests.proof.fuzz_targets import make_workplace

        workplace = make_workplace(Path(name) / "workplace")
        for number, (target, seed) in enumerate(not_yet(options.log, ("target", "seed"), wanted)):
            folder = Path(name) / "case"
            keep(options.log, run_case(target, seed, workplace, folder), shown=False)
            if number == 2 * len(names):
                start_mib = own_mib("VmRSS")
    grown = own_mib("VmRSS") - start_mib if start_mib else 0
    return report(
        [line for line in read_json_lines(options.log) if (line["target"], line["seed"]) in set(wanted)], grown
    )


def report(lines: list[dict[str, Any]], grown_mib: int) -> int:
    """Say what came out; the exit status."""
    faults = [line for line in lines if line["fault"]]
    for line in faults:
        print(f"{line['target']} seed {line['seed']}: {line['fault']} ({line['done']})")
    counts = Counter((line["target"], line["status"]) for line in lines)
    for (target, status), count in sorted(counts.items()):
        print(f"{target}: status {status} {count} times")
    slowest = max(lines, key=lambda line: line["seconds"])
    print(
        f"slowest case {slowest['seconds']:.1f} s ({slowest['target']} seed {slowest['seed']}); grown {grown_mib} MiB"
    )
    if grown_mib > MOST_GROWTH_MIB:
        print(f"memory grew beyond {MOST_GROWTH_MIB} MiB")
        return 1
    wrong = sum(bool(line.get("wrong")) for line in lines)
    print(f"{len(lines) - len(faults)} passed, {len(faults)} failed; {wrong} certainly wrong; {commits(lines)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
