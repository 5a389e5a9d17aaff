"""Streaming shards through samplers and scorers, and replacing those that die.

`colocated`: one process works at a time, because they share devices; a shard is sampled, scored and written before the
next begins. `split`: every free sampler takes the next shard while scorers work on finished ones; at most one sampled
shard a scorer waits, so that memory stays bounded.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.cluster import end_actor, make_actor, processes_now, threads_for, wait_for, wait_for_any
from gpo.config import RunConfig
from gpo.cpu import allocator_environment
from gpo.errors import StageError
from gpo.scoring import ShardScorer, ShardSummary
from rollout.engine import EngineSettings, SampleRequest, Sampling
from rollout.sampler import Sampler, SampleReport

logger = logging.getLogger(__name__)

LARGEST_TRIES = 3
"""A shard that kills its process this often ends the run."""


@dataclass(slots=True)
class Shard:
    """A unit of work: requests, and the file that holds the result."""

    index: int
    requests: list[SampleRequest]
    path: str
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Which weights samplers must hold: a directory, and its version when it was published."""

    directory: str
    version: str | None


class Pool:
    """The sampler and scorer processes of a run, started when first needed and kept over iterations."""

    def __init__(self, config: RunConfig, engine: EngineSettings, logs: str) -> None:
        self._config = config
        self._logs = logs
        self._shared = config.cluster.shape == "colocated"
        at_work = 1 if self._shared else config.cluster.samplers + config.cluster.scorers
        self._threads = threads_for(config, at_work)
        self._engine = engine
        self._samplers: list[Any] = []
        self._scorers: list[Any] = []
        self._loaded: dict[Any, Weights] = {}

    def samplers(self, weights: Weights) -> list[Any]:
        """All samplers, started where missing, each holding these weights."""
        while len(self._samplers) < processes_now("sampler", self._config.cluster.samplers):
            self._samplers.append(make_actor(Sampler, self._engine, threads=self._threads, role="sampler"))
        stale = [actor for actor in self._samplers if self._loaded.get(actor) != weights]
        loads = [(actor, actor.load.remote(weights.directory, weights.version)) for actor in stale]
        for actor, load in loads:
            wait_for(load, self._config.cluster.wait_seconds, f"a sampler that loads {weights.directory}")
            self._loaded[actor] = weights
        return list(self._samplers)

    def scorers(self) -> list[Any]:
        """All scorers, started where missing."""
        while len(self._scorers) < processes_now("scorer", self._config.cluster.scorers):
            self._scorers.append(self._new_scorer())
        return list(self._scorers)

    def replace_sampler(self, actor: Any) -> None:
        """Throw a sampler away; the next use starts a new one."""
        self._samplers.remove(actor)
        self._loaded.pop(actor, None)
        end_actor(actor)

    def replace_scorer(self, actor: Any) -> None:
        """Throw a scorer away; the next use starts a new one."""
        self._scorers.remove(actor)
        end_actor(actor)

    def _new_scorer(self) -> Any:
        preference = self._config.preference.model_dump(mode="json")
        preference["sources"] = {name: _absolute(spec) for name, spec in preference["sources"].items()}
        target = self._config.target.model_dump(mode="json")
        return make_actor(
            ShardScorer,
            preference,
            target,
            self._logs,
            self._threads,
            threads=self._threads,
            role="scorer",
            environment=allocator_environment(),
        )

    def run(
        self,
        shards: list[Shard],
        weights: Weights,
        sampling: Sampling,
        on_finished: Callable[[Shard, SampleReport, ShardSummary], None],
    ) -> None:
        """Sample and score every shard; `on_finished` is called when a shard's file is whole.

        Raises StageError when a shard fails LARGEST_TRIES times or a deadline passes.
        """
        Stream(self, self._config, shards, weights, sampling, on_finished).run()


class Stream:
    """One pass of shards through the pool."""

    def __init__(
        self,
        pool: Pool,
        config: RunConfig,
        shards: list[Shard],
        weights: Weights,
        sampling: Sampling,
        on_finished: Callable[[Shard, SampleReport, ShardSummary], None],
    ) -> None:
        self._pool = pool
        self._config = config
        self._weights = weights
        self._sampling = sampling
        self._on_finished = on_finished
        self._waiting = deque(shards)
        self._sampled: deque[tuple[Shard, Any, SampleReport]] = deque()
        self._at_work: dict[Any, Callable[[], None]] = {}
        self._busy: set[Any] = set()

    def run(self) -> None:
        """Until nothing is left."""
        seconds = self._config.cluster.wait_seconds
        while self._waiting or self._sampled or self._at_work:
            self._start_what_may_start()
            ready = wait_for_any(list(self._at_work), seconds, "generating and scoring")
            self._at_work.pop(ready)()

    def _start_what_may_start(self) -> None:
        exclusive = self._config.cluster.shape == "colocated"
        for scorer in self._pool.scorers():
            if self._sampled and scorer not in self._busy and not (exclusive and self._at_work):
                self._score(scorer, *self._sampled.popleft())
        if not self._waiting or len(self._sampled) >= self._config.cluster.scorers:
            return
        if exclusive and self._at_work:
            return
        for sampler in self._pool.samplers(self._weights):
            if self._waiting and sampler not in self._busy and not (exclusive and self._at_work):
                self._sample(sampler, self._waiting.popleft())

    def _sample(self, sampler: Any, shard: Shard) -> None:
        rows, report = sampler.sample.options(num_returns=2).remote(shard.requests, self._sampling)
        self._busy.add(sampler)

        def finish() -> None:
            self._busy.discard(sampler)
            found = self._result(report, shard, lambda: self._pool.replace_sampler(sampler))
            if found is None:
                self._waiting.appendleft(shard)
            else:
                self._sampled.append((shard, rows, found))

        self._at_work[report] = finish

    def _score(self, scorer: Any, shard: Shard, rows: Any, sampled: SampleReport) -> None:
        scored = scorer.score_shard.remote(rows, shard.path)
        self._busy.add(scorer)

        def finish() -> None:
            self._busy.discard(scorer)
            summary = self._result(scored, shard, lambda: self._pool.replace_scorer(scorer))
            if summary is None:
                # The samples may have gone with their owner's process: draw them again, the seeds are the same.
                self._waiting.appendleft(shard)
            else:
                self._on_finished(shard, sampled, summary)

        self._at_work[scored] = finish

    def _result(self, reference: Any, shard: Shard, replace: Callable[[], None]) -> Any | None:
        """The result, or None when the process died and the shard is to be tried again."""
        import ray

        try:
            return wait_for(reference, self._config.cluster.wait_seconds, f"shard {shard.index}")
        except ray.exceptions.RayActorError as error:
            shard.tries += 1
            replace()
            if shard.tries >= LARGEST_TRIES:
                raise StageError(f"shard {shard.index}: its process died {shard.tries} times: {error}") from None
            logger.warning("A process died at shard %d; a new one takes it again.", shard.index)
            return None
        except ray.exceptions.ObjectLostError:
            shard.tries += 1
            if shard.tries >= LARGEST_TRIES:
                raise StageError(f"shard {shard.index}: its samples were lost {shard.tries} times") from None
            return None


def _absolute(spec: str) -> str:
    """A source's spec with an absolute path: actors have a working directory of their own."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{Path(place).absolute()}"
