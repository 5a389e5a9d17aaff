"""metrics.jsonl of a training: a line a step and an evaluation, the truth, and the trackers that copy it.
What it is: callbacks of the trainer; the first worker writes. What it is not: it computes no metric.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """Appends what is logged, with the step and how many there are."""

    def __init__(self, path: Path, epochs: float) -> None:
        self._path, self._epochs = path, epochs

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

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that will be done again, and what a crash left of one."""
        if not self._path.is_file():
            return
        kept = [line for line in map(_whole_line, self._path.read_text("utf-8").splitlines()) if line]
        part = self._path.with_name(f".{self._path.name}.part-{os.uname().nodename}-{os.getpid()}")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept if line["step"] <= step), "utf-8")
        part.replace(self._path)


class Heartbeat(TrainerCallback):
    """Touches a file whenever something is done that is no step: the driver waits as long as it gets newer."""

    def __init__(self, path: Path) -> None:
        self._path, self._beaten = path, float("-inf")

    def beat(self) -> None:
        """Something was done; at most one touch a second."""
        now = time.monotonic()
        if now - self._beaten >= 1.0:
            self._beaten = now
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()

    def close(self) -> None:
        """Nobody waits any more."""
        self._path.unlink(missing_ok=True)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """A forward pass of a step."""
        self.beat()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """A batch of an evaluation."""
        self.beat()


class Trackers(TrainerCallback):
    """transformers' own callbacks of trackers, one of which may fail: that ends its copies and nothing else."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._names, self._folder = names, folder
        self._followers: list[TrainerCallback] = []

    def on_train_begin(self, *event: Any, **values: Any) -> None:
        for name in self._names:
            self._try(name, partial(self._start, name))
        self._each("on_train_begin", event, values)

    def on_log(self, *event: Any, **values: Any) -> None:
        self._each("on_log", event, values)

    def on_train_end(self, *event: Any, **values: Any) -> None:
        self._each("on_train_end", event, values)

    def _start(self, name: str) -> None:
        self._followers.append(_follower(name, self._folder))

    def _each(self, method: str, event: tuple[Any, ...], values: dict[str, Any]) -> None:
        for one in list(self._followers):
            if not self._try(type(one).__name__, partial(getattr(one, method), *event, **values)):
                self._followers.remove(one)

    @staticmethod
    def _try(name: str, work: Callable[[], Any]) -> bool:
        try:
            work()
        except Exception as error:  # of other people's services; metrics.jsonl has it all
            logger.warning("tracker %s: %s: %s; it gets no more numbers", name, type(error).__name__, error)
            return False
        return True


def _follower(name: str, folder: Path) -> TrainerCallback:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        # By itself it writes among the step checkpoints, which go at the end.
        return TensorBoardCallback(SummaryWriter(str(folder / name)))
    from transformers.integrations import get_reporting_integration_callbacks

    (kind,) = get_reporting_integration_callbacks([name])
    found: TrainerCallback = kind()
    return found


def _whole_line(text: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
