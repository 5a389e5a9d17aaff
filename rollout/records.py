"""The rollout row, its Parquet schema, and a shard file that is whole when it exists.

A row is one prompt with its K answers. A shard is written once: temporary name, flush to disk, rename.
"""

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 1

_floats = pa.list_(pa.float32())
_ids = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        pa.field("format_version", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
        pa.field("prompt_ids", _ids, nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("weight_version", pa.string(), nullable=False),
        pa.field("completion", pa.list_(pa.string()), nullable=False),
        pa.field("completion_ids", pa.list_(_ids), nullable=False),
        pa.field("finish_reason", pa.list_(pa.string()), nullable=False),
        pa.field("embedding", pa.list_(_floats)),
        pa.field("score", _floats, nullable=False),
        pa.field("target", _floats, nullable=False),
        pa.field("gate", _floats),
        pa.field("table", pa.list_(_floats), nullable=False),
        pa.field("baseline_kind", pa.string(), nullable=False),
        pa.field("baseline_ids", pa.list_(pa.string()), nullable=False),
    ]
)


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
    """For each of the M baseline answers: `prompt_id/k`, with the weight version in front where it differs."""
    format_version: int = FORMAT_VERSION


def write_shard(path: Path, rows: list[RolloutRow]) -> None:
    """Write all rows at once; raises OSError when the disk is full, leaving no file of that name."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as stream:
            pq.write_table(table, stream, compression="zstd")
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename inside the directory last through a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_shard(path: Path) -> list[RolloutRow]:
    """Rows of a shard; raises ValueError naming the file when it is not one of ours."""
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise ValueError(f"{path}: not a readable rollout shard ({error}); remove it and start the run again") from None
    rows = [_row_of(values) for values in table.to_pylist()]
    foreign = {row.format_version for row in rows} - {FORMAT_VERSION}
    if foreign:
        raise ValueError(f"{path}: format_version {sorted(foreign)}, this version reads {FORMAT_VERSION}")
    return rows


def _row_of(values: dict) -> RolloutRow:
    return RolloutRow(**{field.name: values[field.name] for field in fields(RolloutRow)})
