"""The run's process for the trainer's forward, as the driver sees it: started once, kept, replaced when it dies."""

import logging
from collections.abc import Callable
from typing import Any

from gpo.cluster.runtime import end_actor, make_actor, threads_for, wait_for
from gpo.config import RunConfig
from gpo.cpu import forward_environment
from gpo.errors import StageError, reason_of
from gpo.training.forward_actor import ForwardActor

logger = logging.getLogger(__name__)

LARGEST_LOSSES = 3
"""Processes that may be lost at one question before the run ends."""


class ForwardProcess:
    """Kept over a run, because its imports take longer than most of what it is asked."""

    def __init__(self, config: RunConfig, logs: str, record: Callable[..., None] | None = None) -> None:
        """`record` writes a line of the journal for each process that is lost."""
        self._config = config
        self._logs = logs
        self._record = record
        self._actor: Any = None

    def start(self) -> None:
        """Start it where it is missing; returns at once, so that other processes can start beside it."""
        if self._actor is None:
            threads = threads_for(self._config.cluster, 1)
            policy = self._config.policy.model_dump(mode="json")
            self._actor = make_actor(
                ForwardActor, policy, self._logs, threads, threads=threads, environment=forward_environment()
            )

    def ask(self, call: Callable[[Any], Any], what: str) -> Any:
        """The answer to `call(actor)`; raises StageError when LARGEST_LOSSES processes are lost over it."""
        import ray

        for _ in range(LARGEST_LOSSES):
            self.start()
            try:
                return wait_for(call(self._actor), self._config.cluster.wait_seconds, what)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                lost = reason_of(error)
                logger.warning("the forward's process was lost at %s (%s); a new one is asked", what, lost)
                self.close()
                if self._record is not None:
                    self._record("lost", process="forward", reason=lost)
        raise StageError(
            f"{what}: {LARGEST_LOSSES} processes were lost ({lost}); start the same command again to go on"
        )

    def close(self) -> None:
        """End the process."""
        if self._actor is not None:
            end_actor(self._actor)
            self._actor = None
