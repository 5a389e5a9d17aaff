"""What a stage wants done: shards of requests, what becomes of each, and when one is a danger to its processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpo.errors import StageError, reason_of
from gpo.rollouts.pool import Weights
from rollout.engine import SampleRequest, Sampling
from rollout.records import SampledPrompt
from rollout.sampler import SampleReport

DEATHS_BEFORE_ISOLATION = 2
"""Of processes at the same shard, before its prompts are tried one by one."""


@dataclass(slots=True, eq=False)
class Shard:
    """A unit of work: requests, and the file that holds the result."""

    index: int
    requests: list[SampleRequest]
    path: str
    given: list[SampledPrompt] | None = None
    """Answers that need no sampling."""
    rows: Any = None
    """Reference to the sampled answers."""
    report: SampleReport | None = None
    deaths: int = 0
    """Of processes that sampled it."""
    scorer_deaths: int = 0
    taken_apart: int = 0

    def samples(self) -> Any:
        """What a scorer is given: a reference, or answers that needed no sampling."""
        return self.rows if self.given is None else self.given

    def forget_samples(self) -> int:
        """Let go of the answers; returns about how many bytes they took."""
        size = self.report.size_bytes if self.report is not None else 0
        self.rows = self.report = None
        return size


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage wants of its shards."""

    weights: Weights | None
    """None: every shard brings its answers."""
    sampling: Sampling
    finish: Callable[[Any, Shard], Any]
    """(scorer actor, shard) -> reference; writes the shard's file."""
    try_one: Callable[[Any, Shard, Any], Any]
    """(scorer actor, shard, answers to one of its prompts) -> reference; as `finish`, but writes nothing."""
    finished: Callable[[Shard, Any], None]
    """Called with what `finish` returned."""
    give_up: Callable[[Shard, str, str], None]
    """(shard, prompt id, what it does) -> records it, or raises StageError when there are too many."""


def scoring_failed(error: Any) -> StageError:
    """What a scorer's own exception (Ray's RayTaskError) means for the run: another try would end the same."""
    if isinstance(error.cause, OSError):
        return StageError(
            f"a shard could not be written or read ({error.cause}); make room or mend it, then start the same command "
            "again: finished shards are kept"
        )
    return StageError(f"scoring failed: {reason_of(error)}; mend it, then start the same command again")
