"""Shards through the pool: bounded work in flight, scoring beside sampling, and nothing lost when a part dies.

`split`: samplers and scorers have their own devices, so finished shards are scored while others are sampled.
`colocated`: they share them, so samplers work until the window is full, then scorers until it is empty, and so on.
The driver holds references, counts and timings; samples go from actor to actor.

A process that dies or is silent beyond its deadline is replaced and its shards start again: the seeds are the same, so
are the answers. A shard whose process died twice is taken apart (`gpo.rollouts.poison`) to find the prompt that kills.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from gpo import interrupts
from gpo.errors import StageError, reason_of
from gpo.rollouts.jobs import DEATHS_BEFORE_ISOLATION, Job, Shard, scoring_failed
from gpo.rollouts.poison import leave_out_poison
from gpo.rollouts.pool import Pool, Worker, load_weights

logger = logging.getLogger(__name__)

MOST_LOSSES = 3
"""Of each process of the pool, without a shard being finished in between; a node takes several at once."""
MOST_WAIT_SECONDS = 5.0


class Stream:
    """One pass of shards through the pool."""

    def __init__(self, pool: Pool, shards: Iterator[Shard], job: Job) -> None:
        cluster = pool.config.cluster
        self.pool, self.job = pool, job
        self._new = shards
        self._again: deque[Shard] = deque()
        self._sampled: deque[Shard] = deque()
        self._isolate: deque[Shard] = deque()
        self._split = cluster.shape == "split"
        self._scoring = False
        self._exhausted = False
        self._losses = 0
        """Of processes and of samples, since a shard was finished."""
        self._most_losses = MOST_LOSSES * (cluster.samplers + cluster.scorers)
        self._waiting_bytes = 0
        self._most_bytes = int(cluster.waiting_mib * (1 << 20))
        self._most_waiting = cluster.waiting_shards
        self._depth = shards_in_flight(pool)

    def run(self) -> None:
        """Until nothing is left; raises StageError when it cannot go on."""
        if self.job.weights:
            self.pool.rest_scorers()
        while True:
            self._hand_out()
            busy = [worker for worker in self._all() if worker.work]
            if busy:
                self._wait(busy)
            elif self._isolate:
                self._take_apart(self._isolate.popleft())
            elif not self._more() and not self._sampled:
                self.pool.notice_deaths()
                return

    def _all(self) -> list[Worker]:
        samplers = self.pool.workers("sampler") if self.job.weights else []
        return samplers + self.pool.workers("scorer")

    def _more(self) -> bool:
        """Whether a shard is left that is not sampled yet; keeps at most one drawn from the iterator."""
        if not self._again and not self._exhausted:
            drawn = next(self._new, None)
            self._exhausted = drawn is None
            if drawn is not None:
                self._again.append(drawn)
        return bool(self._again)

    def _full(self) -> bool:
        return len(self._sampled) >= self._most_waiting or self._waiting_bytes >= self._most_bytes

    def _hand_out(self) -> None:
        """Give work to every process that may have more."""
        sampling = any(worker.work for worker in self.pool.workers("sampler")) if self.job.weights else False
        scoring = any(worker.work for worker in self.pool.workers("scorer"))
        if not self._split:
            # The phase changes when its own work is over: devices are shared.
            if not self._scoring and not sampling and (self._full() or not self._more()):
                self._scoring = True
                self.pool.rest_samplers()
            elif self._scoring and not scoring and not self._sampled:
                self._scoring = False
                if self._more():
                    self.pool.rest_scorers()
        if (self._split or not self._scoring) and not self._isolate:
            self._hand_out_sampling()
        if self._split or self._scoring:
            self._hand_out_scoring()

    def _hand_out_sampling(self) -> None:
        weights = self.job.weights
        if weights is None:
            while not self._full() and self._more():
                self._sampled.append(self._again.popleft())
            return
        if not self._more():
            return
        for worker in self.pool.workers("sampler"):
            if worker.loaded != weights and not worker.work:
                self._follow(worker, load_weights(worker, weights), None)
        ready = [worker for worker in self.pool.workers("sampler") if worker.loaded == weights]
        while not self._full() and ready and self._more():
            worker = min(ready, key=lambda worker: len(worker.work))
            if len(worker.work) >= self._depth:
                return
            shard = self._again.popleft()
            rows, report = worker.actor.sample.options(num_returns=2).remote(shard.requests, self.job.sampling)
            shard.rows = rows
            self._follow(worker, report, shard)

    def _hand_out_scoring(self) -> None:
        for worker in sorted(self.pool.workers("scorer"), key=lambda worker: len(worker.work)):
            # Two at most, so that the next shard is there when one is finished.
            while self._sampled and len(worker.work) < 2:
                shard = self._sampled.popleft()
                worker.awake = True
                self._follow(worker, self.job.finish(worker.actor, shard), shard)

    def _follow(self, worker: Worker, reference: Any, shard: Shard | None) -> None:
        if not worker.work:
            worker.quiet_since = time.monotonic()
        worker.work[reference] = shard

    def _wait(self, busy: list[Worker]) -> None:
        """Take what is ready; replace who is silent too long."""
        import ray

        interrupts.check()
        seconds = self.pool.config.cluster.wait_seconds
        silent = min(worker.quiet_since for worker in busy) + seconds - time.monotonic()
        references = [reference for worker in busy for reference in worker.work]
        ready, _ = ray.wait(references, num_returns=1, timeout=max(0.0, min(silent, MOST_WAIT_SECONDS)))
        for reference in ready:
            worker = next(worker for worker in busy if reference in worker.work)
            self._take(worker, reference)
        for worker in busy:
            if worker.work and time.monotonic() - worker.quiet_since > seconds:
                self._replace(worker, f"no answer within {seconds:.0f} s")

    def _take(self, worker: Worker, reference: Any) -> None:
        import ray

        try:
            result = ray.get(reference)
        except ray.exceptions.ObjectLostError:
            self._lost(worker, reference)
            return
        except ray.exceptions.RayTaskError as error:
            self._refused(worker, reference, error)
            return
        except ray.exceptions.RayError as error:
            self._replace(worker, reason_of(error))
            return
        worker.quiet_since = time.monotonic()
        shard = worker.work.pop(reference)
        if shard is None:
            worker.loaded = self.job.weights
        elif worker.role == "sampler":
            shard.report = result
            self._waiting_bytes += result.size_bytes
            self._sampled.append(shard)
        else:
            self._losses = 0
            self.job.finished(shard, result)
            self._forget_samples(shard)

    def _refused(self, worker: Worker, reference: Any, error: Any) -> None:
        """An exception inside an actor: an engine is rebuilt, a scorer is believed, a lost object is nobody's fault."""
        import ray

        if isinstance(error.cause, ray.exceptions.ObjectLostError):
            self._lost(worker, reference)
        elif worker.role == "sampler" or isinstance(error.cause, MemoryError):
            self._replace(worker, reason_of(error))
        else:
            raise scoring_failed(error)

    def _lost(self, worker: Worker, reference: Any) -> None:
        """The samples went with another process before they were scored: draw them again, the seeds are the same."""
        if worker.work[reference] is None:
            self._replace(worker, "whether it holds the weights is not known")
            return
        shard = worker.work.pop(reference)
        self._count_loss(f"the samples of shard {shard.index}")
        logger.warning("The samples of shard %d were lost; they are drawn again.", shard.index)
        self._forget_samples(shard)
        self._again.appendleft(shard)

    def _replace(self, worker: Worker, why: str) -> None:
        """Throw a process away; what it had goes back."""
        self._count_loss(f"a {worker.role} ({why})")
        shards = [shard for shard in worker.work.values() if shard is not None]
        worker.work = {}
        logger.warning("A %s was lost (%s); a new one takes over %d shards.", worker.role, why, len(shards))
        self.pool.lose(worker, why)
        for shard in reversed(shards):
            if worker.role == "sampler":
                shard.deaths += 1
            else:
                # The samples may have gone with their owner's process: draw them again, the seeds are the same.
                shard.scorer_deaths += 1
                self._forget_samples(shard)
            lethal = max(shard.deaths, shard.scorer_deaths) >= DEATHS_BEFORE_ISOLATION
            (self._isolate if lethal else self._again).appendleft(shard)

    def _count_loss(self, what: str) -> None:
        self._losses += 1
        if self._losses > self._most_losses:
            raise StageError(
                f"{self._losses} processes or samples were lost without a shard being finished, the last one {what}; "
                "start the same command again to go on"
            )

    def _forget_samples(self, shard: Shard) -> None:
        self._waiting_bytes -= shard.forget_samples()

    def _take_apart(self, shard: Shard) -> None:
        """Nothing else is in flight: find the prompts that kill, leave them out, and go on with the rest."""
        leave_out_poison(self.pool, self.job, shard)
        if self.job.weights:
            self.pool.rest_scorers()  # One may have tried the last prompt; sampling goes on.
        self._losses = 0
        self._again.appendleft(shard)


def shards_in_flight(pool: Pool) -> int:
    """Shards that a sampler holds at a time: enough to fill its engine, and two that wait to take freed places.

    One is not enough where lengths are uneven: its short answers may end before the last long one of the others.
    """
    rollout = pool.config.rollout
    return 2 + -(-rollout.engine.max_sequences // (rollout.shard_prompts * rollout.samples))
