"""Where log lines go: each process has a file of its own in the run directory, people get sentences on the terminal."""

import logging
import os
import sys
import time
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS = ("gpo", "reward", "rollout")


def log_to_file(folder: Path, name: str) -> None:
    """Send this process's log lines to `folder/name.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{name}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    for package in OURS:
        logging.getLogger(package).setLevel(logging.INFO)


class Sentence(logging.Formatter):
    """The message alone; tracebacks are for the log files."""

    def format(self, record: logging.LogRecord) -> str:
        """The sentence."""
        return record.getMessage()


def log_to_terminal() -> None:
    """Our own sentences on standard error, without ornament."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Sentence())
    for package in OURS:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)


class Progress:
    """One line a long stage, with rate and time left; rewritten on a terminal, printed seldom elsewhere."""

    PLAIN_EVERY_SECONDS = 15.0

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._started = time.monotonic()
        self._printed = self._started
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, note: str = "") -> None:
        """Say how far the stage is."""
        now = time.monotonic()
        finished = done >= self._total
        if not (self._live or finished or now - self._printed >= self.PLAIN_EVERY_SECONDS):
            return
        self._printed = now
        seconds = max(now - self._started, 1e-9)
        rate = done / seconds
        left = f"{(self._total - done) / rate:.0f} s left" if 0 < done < self._total else f"{seconds:.0f} s"
        filled = round(24 * min(1.0, done / max(1, self._total)))
        bar = "#" * filled + "." * (24 - filled)
        line = f"{self._title} [{bar}] {done}/{self._total} {self._unit}, {rate:.1f}/s, {left}{note and ', ' + note}"
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{line}" + ("\n" if finished else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
