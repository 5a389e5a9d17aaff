"""The sampler and scorer processes of a run: started when first needed, kept over iterations, replaced when they die.

What they work on is `gpo.rollouts.stream`'s business.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpo.cluster.runtime import end_actor, make_actor, processes_now, threads_for, wait_for
from gpo.config import RunConfig
from gpo.cpu import actor_environment
from gpo.errors import StageError, reason_of
from gpo.rollouts.logged_sampler import LoggedSampler
from gpo.rollouts.scoring import ShardScorer
from rollout.engine_settings import EngineSettings
from rollout.weight_transfer import NcclSender

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
MOST_FAILURES = 3
"""Of engines at taking the same weights, or of processes at the same work, before the run ends."""
LOOK_SECONDS = 2.0
"""Between two looks for room in the cluster: each costs a round trip or two."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Which weights samplers must hold: a directory, and its version when it was published."""

    directory: str
    version: str | None


@dataclass(slots=True, eq=False)
class Worker:
    """A process of the pool."""

    actor: Any
    role: str
    """sampler or scorer."""
    loaded: Weights | None = None
    work: dict[Any, Any] = field(default_factory=dict)
    """Result reference -> what it is the result of."""
    awake: bool = False
    """A scorer that may have its models on the device."""
    quiet_since: float = 0.0
    """When it last gave a sign of life, or was given work while it had none."""


class Pool:
    """All processes of a run that sample and score."""

    def __init__(
        self,
        config: RunConfig,
        engine: EngineSettings,
        logs: str,
        *,
        sampler: type = LoggedSampler,
        scorer: type = ShardScorer,
        record: Callable[..., None] | None = None,
    ) -> None:
        """`sampler` and `scorer` are the classes of the actors; benchmarks and tests put others in their place.

        `record` writes a line of the journal for each process that is lost.
        """
        self.config = config
        self._logs = logs
        self._engine = engine
        self._record = record
        self._kinds = {"sampler": sampler, "scorer": scorer}
        cluster = config.cluster
        at_work = cluster.scorers + (0 if cluster.shape == "colocated" else cluster.samplers)
        self._scorer_threads = threads_for(cluster, at_work, cluster.scorer_cpus)
        self._workers: list[Worker] = []
        self._look_again: dict[str, float] = {}
        """Of each role, when its missing processes are next looked for."""
        self._sender: Any = None

    def workers(self, role: str) -> list[Worker]:
        """All of a role, started where missing; fewer while the cluster has no room for more."""
        found = [worker for worker in self._workers if worker.role == role]
        cluster = self.config.cluster
        wanted = cluster.samplers if role == "sampler" else cluster.scorers
        if len(found) == wanted or (found and time.monotonic() < self._look_again.get(role, 0.0)):
            return found
        self._look_again[role] = time.monotonic() + LOOK_SECONDS
        for _ in range(processes_now(role, wanted) - len(found)):
            actor = self._new_sampler() if role == "sampler" else self._new_scorer()
            self._workers.append(Worker(actor, role))
            found.append(self._workers[-1])
        return found

    def samplers(self, weights: Weights) -> list[Any]:
        """All samplers as actors, each holding these weights.

        An engine that fails to take them may hold a mixture: it is thrown away and a new one started. Raises
        StageError when that fails MOST_FAILURES times.
        """
        self.notice_deaths()
        self.rest_scorers()
        for tries in range(1, MOST_FAILURES + 1):
            stale = [worker for worker in self.workers("sampler") if worker.loaded != weights]
            loads = self._send(stale, weights)
            failures = [failure for worker, load in loads if (failure := self._finish_load(worker, load, weights))]
            self._end_sender()
            if not failures:
                return [worker.actor for worker in self.holding(weights)]
            logger.warning("%s; it is replaced by a new one (%d of %d tries)", failures[0], tries, MOST_FAILURES)
        raise StageError(f"{failures[0]}; {MOST_FAILURES} engines failed. Start the same command again to go on")

    def _send(self, stale: list[Worker], weights: Weights) -> list[tuple[Worker, Any]]:
        """Ask samplers to hold weights: each from the disk, or all together over the network where they run already."""
        by_network = self._engine.weight_transfer == "nccl" and weights.version is not None
        if not (by_network and stale and all(worker.loaded for worker in stale)):
            return [(worker, load_weights(worker, weights)) for worker in stale]
        if self._sender is None:
            # What a learner leaves behind is free for certain: samplers and scorers keep their devices.
            self._sender = make_actor(NcclSender, threads=1, gpus=min(1.0, self.config.cluster.learner_gpus or 1.0))
        for worker in stale:
            worker.loaded = None
        actors = [worker.actor for worker in stale]
        sent = self._sender.send.remote(weights.directory, weights.version, actors, self._engine.tensor_parallel)
        return [(worker, sent) for worker in stale]

    def ask_samplers(self, weights: Weights, call: Callable[[Any], Any], what: str) -> list[Any]:
        """What each sampler answers to `call(actor)` when it holds these weights; those that die are replaced.

        Raises StageError when that happens MOST_FAILURES times.
        """
        import ray

        for _ in range(MOST_FAILURES):
            self.samplers(weights)
            asked = [(worker, call(worker.actor)) for worker in self.holding(weights)]
            answers, lost = [], ""
            for worker, reference in asked:
                try:
                    answers.append(wait_for(reference, self.config.cluster.wait_seconds, what))
                except (ray.exceptions.RayError, StageError) as error:
                    lost = reason_of(error)
                    self.lose(worker, lost)
            if not lost:
                return answers
            logger.warning("a sampler was lost at %s (%s); a new one is asked", what, lost)
        raise StageError(f"{what}: {MOST_FAILURES} samplers were lost ({lost}); start the same command again to go on")

    def in_spite_of_deaths(self, work: Callable[[], Found], what: str) -> Found:
        """What `work` returns, which asks processes of the pool directly; it starts again when one dies meanwhile.

        Also when one dies after it answered and takes the answers with it. Raises StageError when that happens
        MOST_FAILURES times.
        """
        import ray

        losses = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError)
        for _ in range(MOST_FAILURES):
            try:
                return work()
            except ray.exceptions.RayError as error:
                # Who was to read lost answers raises an error of its own, which has the loss as its cause.
                if not isinstance(error, losses) and not isinstance(getattr(error, "cause", None), losses):
                    raise
                lost = reason_of(error)
                logger.warning("a process was lost at %s (%s); it starts again with a new one", what, lost)
                self.notice_deaths()
        raise StageError(f"{what}: {MOST_FAILURES} processes were lost ({lost}); start the same command again to go on")

    def _finish_load(self, worker: Worker, load: Any, weights: Weights) -> str | None:
        """What went wrong, with the worker thrown away; None when it holds the weights."""
        import ray

        try:
            wait_for(load, self.config.cluster.wait_seconds, "a sampler")
        except (ray.exceptions.RayError, StageError) as error:
            self.lose(worker, reason_of(error))
            return f"a sampler could not load {weights.directory}: {reason_of(error)}"
        worker.loaded = weights
        return None

    def holding(self, weights: Weights) -> list[Worker]:
        """Samplers that hold these weights now; one that joined meanwhile holds none yet."""
        return [worker for worker in self._workers if worker.role == "sampler" and worker.loaded == weights]

    def rest_samplers(self) -> None:
        """Colocated on GPUs: engines free them for who works next. Loading weights, as each use does, wakes them."""
        loaded = [worker for worker in self._workers if worker.role == "sampler" and worker.loaded]
        self._rest(loaded, "a sampler that frees its GPU")

    def rest_scorers(self) -> None:
        """The same for scorers, which open their models again when they are asked."""
        awake = [worker for worker in self._workers if worker.role == "scorer" and worker.awake]
        self._rest(awake, "a scorer that frees its GPU")

    def rest(self) -> None:
        """Somebody else works next on the devices."""
        self.rest_samplers()
        self.rest_scorers()

    def _rest(self, workers: list[Worker], what: str) -> None:
        import ray

        if not self._engine.sleep_level:
            return
        for worker, resting in [(worker, worker.actor.rest.remote()) for worker in workers]:
            worker.loaded, worker.awake = None, False
            try:
                wait_for(resting, self.config.cluster.wait_seconds, what)
            except (ray.exceptions.RayError, StageError) as error:
                self.lose(worker, reason_of(error))

    def scorers(self) -> list[Any]:
        """All scorers as actors; they work next, so samplers that share their devices rest."""
        self.notice_deaths()
        self.rest_samplers()
        found = self.workers("scorer")
        for worker in found:
            worker.awake = True
        return [worker.actor for worker in found]

    def notice_deaths(self) -> None:
        """Notice processes that died with nothing to do: nobody waits for an answer of theirs that would tell."""
        import ray

        idle = [(worker, worker.actor.__ray_ready__.remote()) for worker in self._workers if not worker.work]
        for worker, ready in idle:
            try:
                wait_for(ready, self.config.cluster.wait_seconds, f"a {worker.role} without work")
            except (ray.exceptions.RayError, StageError) as error:
                logger.warning("a %s was lost while it had no work (%s)", worker.role, reason_of(error))
                self.lose(worker, reason_of(error))

    def lose(self, worker: Worker, reason: str) -> None:
        """Throw away a process that died or failed; the journal keeps which and why."""
        if self._record is not None:
            self._record("lost", process=worker.role, reason=reason)
        self.drop(worker)

    def drop(self, worker: Worker) -> None:
        """Throw a process away; the next use starts a new one."""
        self._workers.remove(worker)
        self._look_again.clear()
        end_actor(worker.actor)

    def _end_sender(self) -> None:
        """A sender goes after each publish: the learners take its GPU next, and one that failed may hang for ever."""
        if self._sender is not None:
            end_actor(self._sender)
            self._sender = None

    def close(self) -> None:
        """End all processes."""
        self._end_sender()
        for worker in list(self._workers):
            self.drop(worker)

    def _new_sampler(self) -> Any:
        return make_actor(
            self._kinds["sampler"],
            self._engine,
            self._logs,
            threads=self._engine.threads,
            role="sampler",
            environment=actor_environment(),
        )

    def _new_scorer(self) -> Any:
        config = self.config.model_dump(mode="json")
        sources = config["preference"]["sources"]
        config["preference"]["sources"] = {name: _absolute(spec) for name, spec in sources.items()}
        return make_actor(
            self._kinds["scorer"],
            config,
            self._logs,
            self._scorer_threads,
            threads=self._scorer_threads,
            role="scorer",
            environment=actor_environment(),
        )


def load_weights(worker: Worker, weights: Weights) -> Any:
    """Ask a sampler to hold weights; whether it did is only known when the reference is done."""
    worker.loaded = None
    return worker.actor.load.remote(weights.directory, weights.version)


def _absolute(spec: str) -> str:
    """A source's spec with an absolute path: actors have a working directory of their own."""
    kind, _, place = spec.partition(":")
    return spec if kind == "url" else f"{kind}:{Path(place).absolute()}"
