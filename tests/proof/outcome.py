"""What a finished run leaves, held against an undisturbed one: answers, their scores, weights, evaluations.

Every column of the shards and the content of checkpoints must be equal to the bit; numbers of files that people read
may differ by the rounding of other company in a batch. Seeds promise equal tokens in float32 (docs/rollout.md), hence
EQUAL_TOKENS.
"""

import json
import math
import operator
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rollout.records import read_baseline, read_shard
from rollout.weights import verify_published
from tests.e2e.tiny_run import command, environment, journal

EQUAL_TOKENS = "policy.dtype=float32"
SECONDS = 900
"""Most that a run may take."""
TRACEBACK = "Traceback (most recent call last)"
"""What nobody should see of a run."""
READ_BY_PEOPLE = ("heldout.json", "evaluation.json", "canary.json")
NOBODYS = {"logs"}
"""Folders whose files are named by processes."""
SHARDS: dict[str, Callable[[Path], Sequence[Any]]] = {"*/rollouts": read_shard, "*/baseline/*": read_baseline}
"""Folders of shards -> who reads them."""


def status_of(process: "subprocess.Popen[Any]") -> int | None:
    """How a run ended; None when it had to be ended."""
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def run_again(config: Path, out: Path, *overrides: str) -> tuple[int | None, str]:
    """Exit status and printed lines of the command of a run; None when it had to be ended."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        words = command(config, out, *overrides)
        process = subprocess.Popen(words, env=environment(), cwd=config.parent, stdout=subprocess.DEVNULL, stderr=said)
        status = status_of(process)
        said.seek(0)
        return status, said.read()


def rows(out: Path) -> dict[str, Any]:
    """Each column by iteration, kind and prompt: of all rows of a prompt, so that a doubled one is no equal."""
    found: dict[str, Any] = {}
    for folders, read in SHARDS.items():
        for path in sorted(out.glob(f"iterations/{folders}/shard-*.parquet")):
            for row in read(path):
                for column in fields(row):
                    name = f"{path.parent.relative_to(out)}/{row.prompt_id} {column.name}"
                    found.setdefault(name, []).append(getattr(row, column.name))
    return found


def results(out: Path) -> dict[str, Any]:
    """By name: files, rows, the content hash of each checkpoint that agrees with its marker, what people read."""
    found: dict[str, Any] = {}
    for path in out.rglob("*"):
        own = path.relative_to(out)
        if path.is_file() and not NOBODYS & set(own.parts):
            found[f"{own} at all"] = True
    found |= rows(out)
    for path in sorted(out.glob("iterations/*/checkpoint")):
        found[str(path.relative_to(out))] = verify_published(path).sha256
    for name in READ_BY_PEOPLE:
        for path in sorted(out.glob(f"iterations/*/{name}")):
            found[str(path.relative_to(out))] = json.loads(path.read_text("utf-8"))
    return found


def differences(out: Path, expected: dict[str, Any]) -> str | None:
    """What a finished run has otherwise than an undisturbed one."""
    try:
        found = results(out)
    except Exception as error:  # whatever it is, a run that says it is finished left it
        return f"finished with what cannot be read: {type(error).__name__}: {error}"

    def equal(name: str) -> bool:
        rounded = name.endswith(READ_BY_PEOPLE)
        compare = same if rounded else operator.eq
        return name in found and name in expected and bool(compare(found[name], expected[name]))

    names = sorted(name for name in expected.keys() | found.keys() if not equal(name))
    return f"finished with another {', '.join(names[:5])}" if names else None


def same(one: Any, other: Any) -> bool:
    """Whether two parsed JSON values are equal, floats but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def written_twice(out: Path) -> str | None:
    """Shards that a run reported as done more than once."""
    shards = Counter((line["iteration"], line["shard"]) for line in journal(out) if line["event"] == "shard")
    twice = [f"{iteration}/{shard}" for (iteration, shard), times in shards.items() if times > 1]
    return f"reported twice as done: shards {', '.join(twice)}" if twice else None
