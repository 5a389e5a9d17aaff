"""Names of checkpoints: what a reader calls `runs/quickstart/iterations/002/checkpoint`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gpo.errors import UserError

NOISE = ("models", "runs", "iterations", "checkpoint", "checkpoints")
"""Folders whose names tell nothing."""


def model_names(models: Sequence[Path]) -> list[str]:
    """A distinct name for each directory, in order: the last telling folders, as few as tell them apart."""
    parts = [[part for part in model.absolute().parts[1:] if part not in NOISE] or [model.name] for model in models]
    names = ["-".join(part[-_needed(part) :]) for part in parts]
    for used in range(1, max(map(len, parts)) + 1):
        repeated = {name for name, count in Counter(names).items() if count > 1}
        if not repeated:
            return names
        names = [
            "-".join(part[-(_needed(part) + used) :]) if name in repeated else name
            for name, part in zip(names, parts, strict=True)
        ]
    raise UserError("--model: the same directory twice; name each once")


def _needed(parts: list[str]) -> int:
    """A bare number such as `002` needs its run's name before it."""
    return 2 if parts[-1].isdecimal() else 1
