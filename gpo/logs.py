"""Where log lines go: each process has a file of its own in the run directory, people get sentences on the terminal.

What is logged names models, files and judges, and quotes their words: every line is made printable, in files too,
because files are looked at in terminals.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path

from rich.cells import cell_len, set_cell_size

from gpo.printable import printable, printable_lines

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS = ("gpo", "reward", "rollout")


class Printable(logging.Formatter):
    """Whole records, tracebacks too, in which nothing steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        return printable_lines(super().format(record))


class Sentence(logging.Formatter):
    """The message alone, which may be read and may not steer; tracebacks are for the log files."""

    def format(self, record: logging.LogRecord) -> str:
        """The sentence."""
        return printable_lines(record.getMessage())


def log_to_file(folder: Path, name: str) -> None:
    """Send this process's log lines to `folder/name.log`.

    A line that cannot be kept, as on a full disk, is lost: logging would print a traceback for each.
    """
    logging.raiseExceptions = False
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{name}.log", encoding="utf-8")
    handler.setFormatter(Printable(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    for package in OURS:
        logging.getLogger(package).setLevel(logging.INFO)


class _Terminal:
    """Standard error, on which one line at most is being rewritten; whatever else is written ends that line first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: object | None = None
        """Whose line is being rewritten."""

    def rewrite(self, owner: object, line: str, finished: bool) -> None:
        """Put `line` in the place of the owner's last one; `finished`: it stays."""
        with self._lock:
            self._put(owner, f"\r\x1b[2K{line}" + ("\n" if finished else ""))
            self._owner = None if finished else owner

    def write(self, text: str) -> None:
        """Whole lines; this is all that a log handler needs of a stream."""
        with self._lock:
            self._put(None, text)
            self._owner = None

    def _put(self, owner: object | None, text: str) -> None:
        before = "" if self._owner in (None, owner) else "\n"
        sys.stderr.write(before + text)
        sys.stderr.flush()


_terminal = _Terminal()


def say(text: str) -> None:
    """Lines for people on standard error, of which nothing steers the terminal."""
    _terminal.write(printable_lines(text) + "\n")


def log_to_terminal() -> None:
    """Our own sentences on standard error, without ornament."""
    handler = logging.StreamHandler(_terminal)
    handler.setFormatter(Sentence())
    for package in OURS:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)


class Progress:
    """One line a long stage, with rate and time left; rewritten on a terminal, printed seldom elsewhere.

    The rate counts from the first update, since an earlier start may have done what that one names. It is told once it
    is measured over half the time that led to the first update: what comes in at the same moment says little.
    """

    PLAIN_EVERY_SECONDS = 15.0

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title = printable(title)
        self._total = total
        self._unit = unit
        self._started = time.monotonic()
        self._printed = self._started
        self._first: tuple[int, float] | None = None
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, note: str = "") -> None:
        """Say how far the stage is."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        finished = done >= self._total
        if not (self._live or finished or now - self._printed >= self.PLAIN_EVERY_SECONDS):
            return
        self._printed = now
        filled = round(24 * min(1.0, done / max(1, self._total)))
        bar = "#" * filled + "." * (24 - filled)
        numbers = ", ".join([f"{done}/{self._total} {self._unit}", *self._times(done, now), *filter(None, [note])])
        if self._live:
            _terminal.rewrite(self, fitted(self._title, bar, printable(numbers), _width() - 1), finished)
        else:
            say(f"{self._title} [{bar}] {numbers}")

    def _times(self, done: int, now: float) -> list[str]:
        """Rate and time left where they can be told, and at the end the time that it took."""
        assert self._first is not None
        before, since = self._first
        seconds = now - since
        told = done > before and seconds > 0 and seconds >= (since - self._started) / 2
        rate = (done - before) / seconds if told else 0.0
        shown = [f"{rate:.1f}/s"] if told else []
        if done >= self._total:
            return [*shown, f"{now - self._started:.0f} s"]
        return [*shown, f"{(self._total - done) / rate:.0f} s left"] if told else []


def fitted(title: str, bar: str, numbers: str, width: int) -> str:
    """A progress line of `width` cells at most: without its bar where it is narrow, and then with a shorter title."""
    whole = f"{title} [{bar}] {numbers}"
    if cell_len(whole) <= width:
        return whole
    room = width - cell_len(numbers) - 1
    kept = title if cell_len(title) <= room else set_cell_size(title, max(room - 3, 0)).rstrip() + "..."
    line = f"{kept} {numbers}"
    return line if cell_len(line) <= width else set_cell_size(line, width)


def _width() -> int:
    """Columns of the terminal on standard error; a terminal that does not know is taken for a usual one."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
