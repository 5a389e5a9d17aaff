"""The command line in a test: in this process, or in one of its own as a user starts it."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from gpo.cli import main
from gpo.logs import OURS

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    status: int
    printed: str
    said: str


def gpo(folder: Path, *words: str | Path, **environment: str) -> Outcome:
    """A verb as the command line runs it, in this process, because importing torch anew costs seconds each time."""
    printed, said = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loggers = [logging.getLogger(name) for name in OURS]
    with (
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", **environment}),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
    ):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:  # argparse's way with what it does not understand
            status = int(end.code or 0)
        finally:
            logging.captureWarnings(False)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for logger in loggers:
                logger.handlers.clear()
    return Outcome(status, printed.getvalue(), said.getvalue())


def gpo_process(folder: Path, *words: str | Path, timeout: float = 300) -> Outcome:
    """A verb in its own process; no traceback is ever shown."""
    done = subprocess.run(
        [sys.executable, "-m", "gpo", *map(str, words)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)
