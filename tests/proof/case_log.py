"""The log of a proof: a line a case with the commit it ran at, kept at once, and counted at the end.

A start with the same log goes on behind it, also at another commit; the end tells which ones the cases ran at. A case
that had a fault is due again at another commit, which may have mended it: of several lines of a case the last counts.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.frame import COMMIT
from gpo.files import append_json_line, read_json_lines

LAST_NUMBERS = re.compile(r"(.*?)(\d(?:[\d/-]*\d)?|)", re.DOTALL)
"""What a seed ends with, behind the kind of its case."""
SeedOf = Callable[[dict[str, Any]], str | None]
"""Of a case's line, the text that its random numbers came from."""


def _lines_of_cases(log: Path, keys: tuple[str, str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """All lines of every case, in their order."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in read_json_lines(log):
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def not_yet(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Cases that are due: without a line, or whose last one has a fault and another commit.

    `keys` are the fields of a line that name its case.
    """
    known = _lines_of_cases(log, keys)

    def due(case: tuple[Any, Any]) -> bool:
        last = known[case][-1] if case in known else None
        return last is None or (bool(last.get("fault")) and last.get("commit") != COMMIT)

    return [case for case in wanted if due(case)]


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


def last_lines(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """The line that counts of every wanted case that was run."""
    known = _lines_of_cases(log, keys)
    return [known[case][-1] for case in dict.fromkeys(wanted) if case in known]


def mended(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]]) -> str:
    """The end of a summary: which of the wanted cases had a fault once and have none now; empty where none is so."""
    known = _lines_of_cases(log, keys)
    names = [
        " ".join(map(str, case))
        for case in dict.fromkeys(wanted)
        if case in known and any(line.get("fault") for line in known[case]) and not known[case][-1].get("fault")
    ]
    return f"; {len(names)} mended: {', '.join(names)}" if names else ""


def seeds(names: Iterable[str | None]) -> str:
    """What cases were drawn from, those that differ in their last numbers together; None: an old line tells none."""
    listed = list(names)
    found: dict[str, list[str]] = {}
    for name in filter(None, listed):
        kind, numbers = LAST_NUMBERS.fullmatch(name).groups()  # type: ignore[union-attr]
        found.setdefault(kind, []).append(numbers)
    parts = [f"{kind}{{{','.join(numbers)}}}" for kind, numbers in found.items()]
    untold = listed.count(None)
    return f"seeds: {' '.join(parts) or 'none'}" + (f"; {untold} older cases do not tell theirs" if untold else "")


def told(log: Path, keys: tuple[str, str], wanted: Iterable[tuple[Any, Any]], seed: SeedOf) -> int:
    """Say how many of the wanted cases have a fault, and their seeds; the exit status."""
    wanted = list(wanted)
    lines = last_lines(log, keys, wanted)
    faults = [line for line in lines if line.get("fault")]
    print(f"{len(lines)} cases, {len(faults)} with a fault; {commits(lines)}{mended(log, keys, wanted)}")
    print(seeds(map(seed, lines)))
    return 1 if faults else 0
