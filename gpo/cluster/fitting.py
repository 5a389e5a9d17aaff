"""A Ray Train run followed from the driver: it fits aside, its steps are shown, and the wait for each is bounded."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpo import interrupts
from gpo.config import ClusterConfig
from gpo.errors import StageError, reason_of
from gpo.logs import Progress

logger = logging.getLogger(__name__)
file_only = logging.getLogger("driver")
"""Lines for the driver's log alone: only our packages' loggers reach the terminal."""

MOST_CONTROLLERS = 3
"""Of one training: Ray Train's own actor may stand on the node that dies, or stumble over its death."""
REPORT_EVERY_SECONDS = 10.0
"""Without a sign for so long, the places of the workers are looked at, and what is missing is said this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What can be seen of a training from the driver."""

    name: str
    """Of the progress line."""
    steps: Callable[[], list[dict[str, Any]]]
    """Reads the lines that the workers wrote so far, each with `step`, `steps` and `loss`."""
    sign: Callable[[], int]
    """Changes as long as the workers do anything, also where no step comes: they read, evaluate, publish."""
    missing: Callable[[], str | None]
    """What the cluster lacks for workers that are not placed; None where nothing."""
    cluster: ClusterConfig
    """Its deadlines."""
    lost: Callable[[str], None] = lambda reason: None
    """Keeps why an actor was lost that Ray Train did not replace: its own, or a worker whose end it stumbled over."""


def fit(new_trainer: Callable[[], Any], followed: Followed, failed: Callable[[BaseException], Exception]) -> None:
    """Fit a trainer of Ray Train to its end, or another one, which goes on, where a node's death ends its controller.

    Raises what `failed` makes of Ray Train's error, and StageError when no sign comes within `wait_seconds`, or the
    cluster has no room for the workers for `placement_seconds`.
    """
    outcome, controllers = _started(new_trainer()), 1
    patience = _Patience(followed)
    progress: Progress | None = None
    shown = 0
    while True:
        interrupts.check()
        try:
            error = outcome.get(timeout=1.0)
        except queue.Empty:
            lines = followed.steps()
            if not lines or lines[-1]["step"] == shown:
                patience.check()
                continue
            shown = lines[-1]["step"]
            patience.renew()
            progress = progress or Progress(followed.name, lines[-1]["steps"], "steps")
            progress.update(shown, f"loss {lines[-1]['loss']:.3g}")
            continue
        if error is None:
            return
        if _is_lost_controller(error) and controllers < MOST_CONTROLLERS:
            logger.warning("%s: an actor of Ray Train was lost (%s); it begins again", followed.name, reason_of(error))
            followed.lost(reason_of(error))
            outcome, controllers = _started(new_trainer()), controllers + 1
            patience.renew()
            continue
        file_only.error("%s: what Ray Train says of it", followed.name, exc_info=error)
        raise failed(error) from error


def _is_lost_controller(error: BaseException) -> bool:
    """Whether an actor beside the workers died or could not be reached; Ray Train itself replaces workers only."""
    import ray

    return isinstance(getattr(error, "controller_failure", error), ray.exceptions.RayActorError)


class _Patience:
    """How long nothing may be heard of the workers."""

    def __init__(self, followed: Followed) -> None:
        self._followed = followed
        self._sign = followed.sign()
        self.renew()

    def renew(self) -> None:
        """They were heard of just now."""
        self._heard = self._reported = time.monotonic()
        self._lacking_since: float | None = None

    def check(self) -> None:
        """Look for a sign; raises StageError when there was none for too long."""
        sign, now = self._followed.sign(), time.monotonic()
        if sign != self._sign:
            self._sign = sign
            self.renew()
        elif now - self._heard >= self._followed.cluster.wait_seconds:
            raise StageError(
                f"{self._followed.name}: no step, nor any other sign of the workers, within "
                f"{self._followed.cluster.wait_seconds:.0f} s (cluster.wait_seconds); start the same command again to "
                "go on"
            )
        elif now - self._heard >= REPORT_EVERY_SECONDS:
            self._look_for_room(now)

    def _look_for_room(self, now: float) -> None:
        found = self._followed.missing()
        if found is None:
            self._lacking_since = None
            return
        self._lacking_since = self._lacking_since or now
        waited, seconds = now - self._lacking_since, self._followed.cluster.placement_seconds
        if waited >= seconds:
            raise StageError(
                f"{self._followed.name}: its workers have no place; the cluster lacks, after {waited:.0f} s "
                f"(cluster.placement_seconds):\n{found}\nadd nodes, and start the same command again to go on"
            )
        if now - self._reported >= REPORT_EVERY_SECONDS:
            self._reported = now
            logger.warning(
                "%s: waiting up to %.0f s more; the cluster lacks:\n%s", self._followed.name, seconds - waited, found
            )


def what_workers_say(error: BaseException) -> str:
    """Ray Train's error in a line: its own text holds the whole traceback of every worker."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        ranks.setdefault(reason_of(failure), []).append(rank)
    told = [f"worker {', '.join(map(str, found))}: {reason}" for reason, found in ranks.items()]
    return "; ".join(told) or reason_of(getattr(error, "controller_failure", error))


def _started(trainer: Any) -> "queue.Queue[BaseException | None]":
    """The queue gets None at the end, or what went wrong.

    In the main thread Ray Train would put a handler on Ctrl-C that ends the program with status 0.
    """
    outcome: queue.Queue[BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            trainer.fit()
            outcome.put(None)
        except BaseException as error:  # handed to the main thread, which raises it
            outcome.put(error)

    threading.Thread(target=run, daemon=True, name="ray-train").start()
    return outcome
