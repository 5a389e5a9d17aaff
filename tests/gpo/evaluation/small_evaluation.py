"""What the evaluation's tests share: a tiny reward model, output files, and the command line as a user starts it."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from gpo.cli import main
from gpo.logs import OURS
from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

REPOSITORY = Path(__file__).parents[3]
WORDS = "rain bread chess honey clocks rivers paper trains gold salt iron moss".split()


@dataclass(frozen=True)
class Outcome:
    status: int
    printed: str
    said: str


def make_gpm(folder: Path) -> Path:
    """A random gated GPM of width 6 on a tiny Llama, bfloat16, whose rounding depends on what is computed together."""
    import torch

    backbone = save_tiny_model(folder / "backbone", layers=1, dtype=torch.bfloat16)
    reward = GeneralPreferenceModel.from_backbone(backbone, RewardSettings.published(6, True), seed=1)
    reward.save_pretrained(folder / "gpm")
    return folder / "gpm"


def answers(name: str, prompts: int = 12) -> list[dict[str, Any]]:
    """Rows whose texts and lengths differ from generator to generator, and from prompt to prompt."""
    salt = sum(map(ord, name))
    rows = []
    for number in range(prompts):
        words = [WORDS[(number * 5 + salt * (place + 1)) % len(WORDS)] for place in range(1 + (salt + number) % 9)]
        instruction = f"Say something about {WORDS[number % len(WORDS)]}, number {number}."
        rows.append({"dataset": "small", "instruction": instruction, "output": " ".join(words), "generator": name})
    return rows


def write_answers(folder: Path, name: str, rows: list[dict[str, Any]] | None = None) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(answers(name) if rows is None else rows), "utf-8")
    return path


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


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
