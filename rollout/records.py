"""Rows of answers, their Parquet schemas, and shard files that are whole when they exist.

A row is one prompt with its K answers (`RolloutRow`), or with M answers that others are scored against
(`BaselineRow`). A shard is written once: temporary name, flush to disk, and a link of the final name, which
replaces no file: one that exists is finished, whoever wrote it.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from rollout.durable import sync

FORMAT_VERSION = 2
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "write_page_checksum": True,
    # Hardly a value comes twice: dictionaries and ranges would cost half of the writing and a third of the file.
    "use_dictionary": False,
    "write_statistics": False,
}
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without hard links says, as object storage that is mounted, or FAT."""

_floats = pa.list_(pa.float32())
_ids = pa.list_(pa.int32())
_texts = pa.list_(pa.string())


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_ANSWERS = [
    _required("format_version", pa.int32()),
    _required("prompt_id", pa.string()),
    _required("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    _required("prompt_ids", _ids),
    _required("seed", pa.int64()),
    _required("weight_version", pa.string()),
    _required("completion", _texts),
    _required("completion_ids", pa.list_(_ids)),
    _required("finish_reason", _texts),
    pa.field("embedding", pa.list_(_floats)),
    pa.field("gate", _floats),
]
SCHEMA = pa.schema(
    [
        *_ANSWERS,
        _required("score", _floats),
        _required("target", _floats),
        _required("table", pa.list_(_floats)),
        _required("baseline_kind", pa.string()),
        _required("baseline_ids", _texts),
        _required("baseline_weight", _floats),
        _required("left_out", _texts),
    ]
)
BASELINE_SCHEMA = pa.schema([*_ANSWERS, _required("source", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPrompt:
    """What an engine returns for one prompt: K answers, not yet scored."""

    prompt_id: str
    prompt: list[dict[str, str]]
    prompt_ids: list[int]
    seed: int
    weight_version: str
    completion: list[str]
    completion_ids: list[list[int]]
    """Without padding; ends with the end token only where the policy itself ended."""
    finish_reason: list[str]
    """`stop` where the policy ended the answer, `length` where the token limit cut it."""


SAMPLED_FIELDS = tuple(field.name for field in fields(SampledPrompt))
"""What a row takes over from its samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow(SampledPrompt):
    """One prompt, its K answers, their scores against M baseline answers, and the targets in nats."""

    embedding: list[list[float]] | None
    """[K][D]; None where the preferences do not come from an embedding model."""
    score: list[float]
    """[K] mean raw score against the baseline."""
    target: list[float]
    """[K] wanted log-ratio in nats."""
    gate: list[float] | None
    """[L]; None without a gate."""
    table: list[list[float]]
    """[K][M] raw scores."""
    baseline_kind: str
    baseline_ids: list[str]
    """For each of the M baseline answers: `prompt_id/k`, with the weight version (or `data`) and `:` in front where
    it differs."""
    baseline_weight: list[float]
    """[M] share of each column of the table in the score; they sum to 1, and some of `optimistic` are negative."""
    left_out: list[str]
    """[K] why an answer is not trained on (`empty`, `identical`, `loop`); "" for those that are."""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow(SampledPrompt):
    """One prompt and the answers of an older policy, or of the data set (weight version `data`, no ids)."""

    embedding: list[list[float]] | None
    """[M][D]; None where the preferences do not come from an embedding model."""
    gate: list[float] | None
    """[L]; None without a gate."""
    source: str
    """Whose embeddings these are: kind and content hash of the reward model."""
    format_version: int = FORMAT_VERSION


SomeRow = TypeVar("SomeRow", RolloutRow, BaselineRow)


def write_shard(path: Path, rows: Sequence[RolloutRow], *, since: float = 0.0) -> bool:
    """Write all rows at once; False when the file is there already, which stays as it is.

    One that was written before `since` (Unix time) is a leftover, of a run before this one, and is replaced. Raises
    OSError when the disk is full, leaving no file of that name.
    """
    return _write(path, rows, SCHEMA, since)


def write_baseline(path: Path, rows: Sequence[BaselineRow], *, since: float = 0.0) -> bool:
    """As `write_shard`."""
    return _write(path, rows, BASELINE_SCHEMA, since)


def _write(path: Path, rows: Sequence[RolloutRow] | Sequence[BaselineRow], schema: pa.Schema, since: float) -> bool:
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    table = pa.Table.from_pydict(columns, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nodes that share a disk count their processes alike.
    part = path.with_name(f".{path.name}.part-{os.uname().nodename}-{os.getpid()}")
    try:
        with part.open("wb") as stream:
            pq.write_table(table, stream, **PARQUET)
            stream.flush()
            os.fsync(stream.fileno())
        ours = _name_finally(part, path, since)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)
    return ours


def _name_finally(part: Path, path: Path, since: float) -> bool:
    """Give a whole file its name; False when another one has it that counts."""
    try:
        os.link(part, path)
        return True
    except OSError as error:
        if error.errno not in (errno.EEXIST, *NO_LINKS):
            raise
    # From here on a writer that comes between look and rename is replaced, by a file that is whole too.
    if path.exists() and path.stat().st_mtime >= since:
        return False
    part.rename(path)
    return True


def read_shard(path: Path) -> list[RolloutRow]:
    """Rows of a shard; raises ValueError naming the file when it is not one of ours."""
    return _read(path, SCHEMA, RolloutRow)


def read_baseline(path: Path) -> list[BaselineRow]:
    """As `read_shard`."""
    return _read(path, BASELINE_SCHEMA, BaselineRow)


def check_shard(path: Path) -> None:
    """As `read_shard`, and keeps nothing of it."""
    _table(path, SCHEMA)


def check_baseline(path: Path) -> None:
    """As `read_baseline`, and keeps nothing of it."""
    _table(path, BASELINE_SCHEMA)


def _read(path: Path, schema: pa.Schema, kind: type[SomeRow]) -> list[SomeRow]:
    rows = _table(path, schema).to_pylist()
    return [kind(**{part.name: values[part.name] for part in fields(kind)}) for values in rows]


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        versions = set(table["format_version"].to_pylist()) if "format_version" in table.column_names else set()
        if not versions - {FORMAT_VERSION}:
            table = table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, LookupError) as error:
        raise ValueError(f"{path}: not a readable rollout shard ({error})") from None
    if versions - {FORMAT_VERSION}:
        raise ValueError(f"{path}: format_version {sorted(versions)}, this version reads {FORMAT_VERSION}")
    return table
