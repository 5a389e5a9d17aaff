"""The log of a proof: a line a case, kept and shown at once, and counted at the end."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpo.files import append_json_line, read_json_lines


def not_yet(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Cases that the log does not have; `keys` are the fields of a line that name its case."""
    known = {tuple(line[key] for key in keys) for line in read_json_lines(log)}
    return [case for case in wanted if case not in known]


def keep(log: Path, line: dict[str, Any]) -> None:
    """A case is over."""
    append_json_line(log, line)
    print(json.dumps(line), flush=True)


def told(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> int:
    """Say how many of the wanted cases have a fault; the exit status."""
    asked = set(wanted)
    lines = [line for line in read_json_lines(log) if tuple(line[key] for key in keys) in asked]
    faults = [line for line in lines if line["fault"]]
    print(f"{len(lines)} cases, {len(faults)} with a fault")
    return 1 if faults else 0
