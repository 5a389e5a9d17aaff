"""The log of a proof: a line a case with the commit it ran at, kept at once, and counted at the end.

A start with the same log goes on behind it, also at another commit; the end tells which ones the cases ran at.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.frame import COMMIT
from gpo.files import append_json_line, read_json_lines


def not_yet(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Cases that the log does not have; `keys` are the fields of a line that name its case."""
    known = {tuple(line[key] for key in keys) for line in read_json_lines(log)}
    return [case for case in wanted if case not in known]


def keep(log: Path, line: dict[str, Any], *, shown: bool = True) -> None:
    """A case is over."""
    line = line | {"commit": COMMIT}
    append_json_line(log, line)
    if shown:
        print(json.dumps(line), flush=True)


def commits(lines: Iterable[dict[str, Any]]) -> str:
    """At which commits the cases ran, and how many at each."""
    counts = Counter(line.get("commit", "an unknown commit") for line in lines)
    return "run at " + ", ".join(f"{name} ({count})" for name, count in counts.items())


def told(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> int:
    """Say how many of the wanted cases have a fault; the exit status."""
    asked = set(wanted)
    lines = [line for line in read_json_lines(log) if tuple(line[key] for key in keys) in asked]
    faults = [line for line in lines if line["fault"]]
    print(f"{len(lines)} cases, {len(faults)} with a fault; {commits(lines)}")
    return 1 if faults else 0
