"""Where the processes run."""

from typing import Annotated, Literal

from pydantic import Field

from gpo.config.types import Count, Positive
from gpo.settings import Settings


class ClusterConfig(Settings):
    """Where the processes run (placement)."""

    address: str | None = None
    """Ray cluster; None starts Ray here, for this run alone, on loopback."""
    shape: Literal["colocated", "split"] = "colocated"
    """colocated: phases in turn on the same devices; split: samplers and scorers side by side."""
    samplers: Count = 1
    """Engine processes."""
    scorers: Count = 1
    """Scoring processes."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads a process; 0 = all cores, shared out among processes that work at the same time."""
    waiting_shards: Count = 8
    """Sampled shards that may wait for a scorer; colocated: after so many, sampling and scoring change places."""
    waiting_mib: Positive = 128.0
    """Memory that they may take, in MiB of the object store."""
    wait_seconds: Positive = 3600.0
    """Deadline of a single shard or stage: a process that is silent for so long is replaced."""
