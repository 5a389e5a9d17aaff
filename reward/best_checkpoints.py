"""The best checkpoints of a training, kept by a metric: whole model directories that load as they are.
What it is: a folder with a directory a kept step, its metrics beside the weights; the worst goes when there are too
many. What it is not: it neither evaluates nor knows workers; every worker asks the same question with the same numbers,
and one writes.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

METRICS = "evaluation.json"


@dataclass(frozen=True)
class Kept:
    """One checkpoint."""

    step: int
    value: float
    directory: Path


class BestCheckpoints:
    """Up to `count` checkpoints in a folder; what is there from an earlier start counts."""

    def __init__(self, folder: Path, metric: str, more_is_better: bool, count: int) -> None:
        self.folder, self.metric, self.count = folder, metric, count
        self._sign = 1 if more_is_better else -1

    def kept(self) -> list[Kept]:
        """Best first; of equals the earlier."""
        found = []
        for path in self.folder.glob(f"step-*/{METRICS}"):
            metrics = json.loads(path.read_text("utf-8"))
            found.append(Kept(metrics["step"], metrics[self.metric], path.parent))
        return sorted(found, key=lambda one: (-self._sign * one.value, one.step))

    def wants(self, step: int, value: float, kept: list[Kept]) -> bool:
        """Whether this step belongs to the best, next to those that are kept."""
        if math.isnan(value):
            return False
        others = [one for one in kept if one.step != step]
        better = sum(self._sign * one.value >= self._sign * value for one in others if one.step < step)
        return better < self.count

    def add(self, step: int, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Write one; it appears whole, and only then does the worst go."""
        target = self.folder / f"step-{step:06d}"
        part = self.folder / f".step-{step:06d}.part"
        shutil.rmtree(part, ignore_errors=True)
        save(part)
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        (part / METRICS).write_text(json.dumps({"step": step, **known}, indent=2) + "\n", "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        for one in self.kept()[self.count :]:
            shutil.rmtree(one.directory)

    def forget_after(self, step: int) -> None:
        """Drop what a training that goes on from `step` will come to again."""
        for one in self.kept():
            if one.step > step:
                shutil.rmtree(one.directory)
