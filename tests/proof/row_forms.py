"""Rows as JSON Lines, as one JSON list and as Parquet, and what fuzzing does to them in each form."""

import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.proof import certain
from tests.proof.mutations import Mutated, mutate_bytes, mutate_json_lines, mutate_value
from tests.proof.odd_values import VALUES, drawn

Rows = list[dict[str, Any]]
SUFFIXES = (".jsonl", ".jsonl", ".json", ".parquet")
"""Of the file of a case; lines are what most have."""
NOT_IN_PARQUET = (pa.ArrowException, OverflowError, UnicodeError, TypeError, AttributeError)
"""What pyarrow says of rows whose columns have no one type, or a value that it has no type for."""


def written(rows: Rows, suffix: str) -> bytes:
    """A good file."""
    if suffix == ".jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return json.dumps(rows, indent=1).encode() if suffix == ".json" else as_parquet(rows)


def as_parquet(rows: Rows) -> bytes:
    """Columns are those of the first row."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def mutate_rows(rows: Rows, suffix: str, draw: Random) -> Mutated:
    """A file of these rows, damaged in its bytes or in its structure."""
    if suffix == ".jsonl":
        return mutate_json_lines(written(rows, suffix), draw)
    good = written(rows, suffix)
    if draw.random() < 0.4:
        return mutate_bytes(good, draw)
    while True:
        changed, done = mutate_value(rows, draw) if draw.random() < 0.5 else _mutate_column(rows, draw)
        try:
            content = written(changed, suffix)
        except NOT_IN_PARQUET:
            continue
        if content != good:
            return Mutated(content, done)


def _mutate_column(rows: Rows, draw: Random) -> tuple[Rows, str]:
    """The same odd value in every row: in Parquet a column has one type."""
    column, odd = draw.choice(sorted(rows[0])), drawn(VALUES, draw)
    return [row | {column: odd} for row in rows], f"column {column} = {odd!r:.40}"


def bad_rows(content: bytes, suffix: str, bad_row: Callable[[Any], bool]) -> bool:
    """Whether a file of rows is certainly wrong: it cannot be read, or one of them is."""
    if suffix == ".parquet":
        return _bad_parquet(content, bad_row)
    return (certain.bad_list if suffix == ".json" else certain.bad_lines)(content, bad_row)


def _bad_parquet(content: bytes, bad_row: Callable[[Any], bool]) -> bool:
    try:
        rows = pq.ParquetFile(io.BytesIO(content)).read().to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        return True
    return not rows or any(map(bad_row, rows))
