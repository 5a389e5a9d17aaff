"""Fuzzing's worker: one case after the other in this process, each judged and kept in the log.

Run: by tests/proof/fuzz.py, which hands over the cases and goes on with the rest where one ends this process.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import logging
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from gpo.cli import INTERRUPTED, TERMINATED
from gpo.cli import main as gpo_main
from gpo.files import read_json_lines
from gpo.logs import OURS
from tests.proof.by_command import mib_of, run_command
from tests.proof.case_log import keep
from tests.proof.fuzz_targets import TARGETS, make_workplace
from tests.proof.outcome import TRACEBACK
from tests.proof.prepared import UNTIL_TRAINING, Prepared
from tests.proof.until_training import main as main_until_training

SECONDS_A_CASE = 60
SECONDS_BY_COMMAND = 4 * SECONDS_A_CASE
SECONDS_IN_ALL = 6 * SECONDS_A_CASE
"""Of both: what Python's own alarm does not end by then stands still in foreign code, and the process ends."""
MOST_MIB_A_CASE = 1024
"""A case may hold so much more at its peak than there was before it; four times that of addresses are refused to it."""
MOST_GROWTH_MIB = 1024
"""Memory of this process may grow by so much over all cases, from the end of the warm-up."""
WARM_UP = 2 * len(TARGETS)
MOST_MIB_BY_COMMAND = 2048
"""All that a command may hold; its imports take up to 600 MiB."""
BY_COMMAND_EVERY, BY_COMMAND_TOO = 100, 3
"""Seeds: short forms have a command a target that is not its first case."""
MOST_DRAWS = 50
"""So often is a case drawn that is the same as an earlier one."""
MAINS: dict[str, Callable[[list[str]], int]] = {"gpo": gpo_main, UNTIL_TRAINING: main_until_training}
"""Command lines by their modules."""
MESSAGE = re.compile(r"^gpo( [a-z]+)*: .*\S", re.MULTILINE)
"""gpo's own, and argparse's, which has the verb too: at the start of a line."""


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


@contextlib.contextmanager
def watched(seconds: int) -> Iterator[None]:
    """Ends this process, its threads' stacks told, also where foreign code stands still and holds Python's lock."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Peak:
    """The most that this process held inside, above what it held before."""

    mib = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Addresses far beyond the bound are refused: that ends a case with an error, not this process."""
        before = mib_of("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, ((mib_of("VmSize") + 4 * MOST_MIB_A_CASE) << 20, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
            self.mib = mib_of("VmHWM") - before


def in_process(words: list[str], module: str = "gpo") -> tuple[int, str]:
    """Status and what was printed; an exception is status -1 with its traceback, a hang -2.

    Output is encoded as a terminal's would be: a character that it cannot hold is an error on standard output.
    """
    printed = io.BytesIO()
    out = io.TextIOWrapper(printed, "utf-8", write_through=True)
    errors = io.TextIOWrapper(printed, "utf-8", "backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            with deadline(SECONDS_A_CASE):
                status = MAINS[module](words)
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        except TooLongError:
            status = -2
        except BaseException:
            errors.write(traceback.format_exc())
            status = -1
    for package in OURS:
        logging.getLogger(package).handlers.clear()
    return status, printed.getvalue().decode("utf-8")


def fault_of(case: Prepared, status: int, printed: str, grown_mib: int) -> str | None:
    """What is wrong with how a case ended."""
    if grown_mib > MOST_MIB_A_CASE:
        return f"grew by {grown_mib} MiB"
    if status == -2:
        return f"no end within {SECONDS_A_CASE} s"
    if status not in (0, 1, 2):
        return f"status {status}"
    if fault := fault_in_words(status, printed):
        return fault
    if case.wrong and status == 0:
        return "status 0 for input that is certainly wrong"
    return None


def fault_in_words(status: int, printed: str) -> str | None:
    """What is wrong with what a case said."""
    if TRACEBACK in printed:
        return "a traceback"
    return f"status {status} without a message of gpo" if status != 0 and not MESSAGE.search(printed) else None


def fault_by_command(case: Prepared, status: int) -> str | None:
    """What is wrong with the same case as a command of its own."""
    alone = run_command(case.module, case.words, SECONDS_BY_COMMAND, MOST_MIB_BY_COMMAND)
    if alone is None:
        return f"no end by command within {SECONDS_BY_COMMAND} s"
    if alone.mib > MOST_MIB_BY_COMMAND:
        return f"held {alone.mib} MiB by command"
    if alone.status != status:
        return f"status {status} in process, {alone.status} by command: {alone.said[-500:]}"
    fault = fault_in_words(status, alone.said)
    return f"{fault} by command: {alone.said[-500:]}" if fault else None


def is_sampled(seed: int) -> bool:
    """Whether a case runs as a command too."""
    return seed % BY_COMMAND_EVERY == 0 or seed == BY_COMMAND_TOO


def digest(case: Prepared, workplace: Path, folder: Path) -> str:
    """Of the words and the input, wherever they lie."""
    words = "\n".join(case.words).encode("utf-8", "surrogatepass")
    text = b"\n".join([words, case.content])
    for path, name in ((workplace, b"workplace"), (folder, b"folder")):
        text = text.replace(os.fsencode(path), name)
    return hashlib.sha256(text).hexdigest()[:16]


class Cases:
    """The cases of a log and of this process, no two of them alike."""

    def __init__(self, log: Path, folder: Path) -> None:
        self.log, self.workplace, self.folder = log, folder / "workplace", folder / "case"
        lines = read_json_lines(log)
        self.owners = {line["input"]: (line["target"], line["seed"]) for line in lines if "input" in line}
        """Which case has a digest."""

    def prepared(self, name: str, seed: int, turn: int) -> Prepared:
        """The case's files, made anew."""
        draw = Random(f"{name}/{seed}/{turn}" if turn else f"{name}/{seed}")
        return TARGETS[name](self.workplace, self.folder, draw)

    def drawn(self, name: str, seed: int) -> tuple[Prepared, int, str, str | None]:
        """A case unlike the earlier ones, which draw it is, its digest, and the fault where it is like one of them."""
        for turn in range(MOST_DRAWS):
            case = self.prepared(name, seed, turn)
            key = digest(case, self.workplace, self.folder)
            if self.owners.setdefault(key, (name, seed)) == (name, seed):
                return case, turn, key, None
        return case, turn, key, f"the same case as {self.owners[key]}, drawn {MOST_DRAWS} times"

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Draw, run and judge a case; returns its line of the log."""
        case, turn, key, fault = self.drawn(name, seed)
        started, peak = time.monotonic(), Peak()
        with peak.measured():
            status, printed = in_process(case.words, case.module)
        if status in (INTERRUPTED, TERMINATED):
            raise KeyboardInterrupt
        fault = fault or fault_of(case, status, printed, peak.mib)
        if fault is None and is_sampled(seed):
            fault = fault_by_command(self.prepared(name, seed, turn), status)
        line = {"target": name, "seed": seed, "draw": turn, "input": key, "done": case.done, "wrong": case.wrong}
        line |= {"status": status, "fault": fault}
        if fault is not None:
            words = [word.encode("utf-8", "backslashreplace").decode() for word in case.words]
            line |= {"words": words, "printed": printed[-3000:]}
        return line | {"seconds": round(time.monotonic() - started, 3), "grown_mib": peak.mib}


def main() -> int:
    """The cases on standard input, as JSON; status 0 when this process did what it should, whatever came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files of cases are made")
    parser.add_argument("log", type=Path)
    options = parser.parse_args()
    parent = os.getppid()
    todo = json.load(sys.stdin)
    ready = options.folder / "ready"
    if not ready.exists():
        make_workplace(options.folder / "workplace")
        ready.touch()
    cases = Cases(options.log, options.folder)
    start_mib = None
    for number, (name, seed) in enumerate(todo):
        if os.getppid() != parent:  # It was killed; its next start would work on the same log.
            return 1
        with watched(SECONDS_IN_ALL):
            line = cases.run(name, seed)
        if number == WARM_UP:
            start_mib = mib_of("VmRSS")
        held = 0 if start_mib is None else mib_of("VmRSS") - start_mib
        keep(options.log, line | {"held_mib": held}, shown=False)
        if held > MOST_GROWTH_MIB:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
