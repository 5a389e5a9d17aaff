"""metrics.jsonl of a training: a line a step and an evaluation, the truth that trackers copy.
What it is: a callback of the trainer; the first worker writes. What it is not: it computes no metric.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class MetricsFile(TrainerCallback):
    """Appends what is logged, with the step and how many there are."""

    def __init__(self, path: Path, epochs: float, on_line: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._path, self._epochs, self._on_line = path, epochs, on_line

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One line."""
        if not state.is_world_process_zero or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        if "epoch" in numbers:
            # The trainer takes all steps for one epoch.
            numbers["epoch"] = round(numbers["epoch"] * self._epochs, 4)
        line = {"step": state.global_step, "steps": state.max_steps, **numbers}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: value for name, value in line.items() if not _is_nan(value)}) + "\n")
        if self._on_line is not None:
            self._on_line(line)

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that will be done again, and what a crash left of one."""
        if not self._path.is_file():
            return
        kept = [line for line in map(_whole_line, self._path.read_text("utf-8").splitlines()) if line]
        part = self._path.with_name(f".{self._path.name}.part-{os.getpid()}")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept if line["step"] <= step), "utf-8")
        part.replace(self._path)


def _whole_line(text: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
