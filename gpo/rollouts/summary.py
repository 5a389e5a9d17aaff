"""What the driver learns of a shard: counts and ranges, of rows at hand or of a finished file."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpo.evaluation.winrate import cyclic_share
from rollout.records import RolloutRow, read_shard


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the driver learns of a finished shard."""

    prompts: int
    answers: int
    tokens: int
    smallest_target: float
    largest_target: float
    cyclic_share: float | None
    left_out: dict[str, int]
    """Degenerate answers that are not trained on, by kind."""
    seconds: float


def summarise(rows: list[RolloutRow], seconds: float) -> ShardSummary:
    """Counts and ranges of a shard; an empty one has targets of 0."""
    targets = [target for row in rows for target in row.target]
    own = [row for row in rows if row.baseline_kind in ("self", "optimistic")]
    squares = [np.array(row.table)[:, : len(row.completion)] for row in own]
    return ShardSummary(
        prompts=len(rows),
        answers=len(targets),
        tokens=sum(len(ids) for row in rows for ids in row.completion_ids),
        smallest_target=min(targets, default=0.0),
        largest_target=max(targets, default=0.0),
        cyclic_share=cyclic_share(squares),
        left_out=dict(Counter(kind for row in rows for kind in row.left_out if kind)),
        seconds=seconds,
    )


def summarise_file(path: Path) -> ShardSummary:
    """Summary of a shard that an earlier start finished."""
    return summarise(read_shard(path), 0.0)
