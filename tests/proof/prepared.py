"""A case of fuzzing before it is run, and how the files of cases are put in place."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.proof.mutations import Mutated, mutate_bytes, mutate_json_lines, mutate_value

UNTIL_TRAINING = "tests.proof.until_training"
"""The command line that ends where gpo would train."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case that can be run."""

    words: list[str]
    done: str
    wrong: bool
    """Certainly wrong: status 0 for it is a fault."""
    content: bytes
    """What was put in the place of a good file; with the words it tells a case from all others."""
    module: str = "gpo"
    """Whose command line it is."""


Target = Callable[[Path, Path, Random], Prepared]


def fresh(folder: Path) -> Path:
    """The folder of a case, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def put(folder: Path, name: str, mutated: Mutated) -> Path:
    """The damaged file in the folder of its case, which holds nothing else."""
    path = fresh(folder) / name
    path.write_bytes(mutated.content)
    return path


def named(name: str, mutated: Mutated) -> bytes:
    """What tells the case: the same damage to another file is another one."""
    return f"{name}\n".encode() + mutated.content


def mutate_file(content: bytes, suffix: str, draw: Random) -> Mutated:
    """By structure where the file has one, or by bytes."""
    if suffix == ".json" and draw.random() < 0.6:
        value, done = mutate_value(json.loads(content), draw)
        return Mutated(json.dumps(value).encode(), done)
    if suffix == ".jsonl":
        return mutate_json_lines(content, draw)
    return mutate_bytes(content, draw)


def dry_run(config: Path, folder: Path) -> list[str]:
    """Words that check a run."""
    return ["run", str(config), "--dry-run", "--run-dir", str(folder / "run")]
