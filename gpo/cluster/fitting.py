"""A Ray Train run followed from the driver: it fits aside, its steps are shown, and the wait for each is bounded."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from gpo import interrupts
from gpo.errors import StageError
from gpo.logs import Progress

Steps = Callable[[], list[dict[str, Any]]]
"""Reads the lines that the workers wrote so far, each with `step`, `steps` and `loss`."""


def fit(
    trainer: Any, name: str, steps: Steps, wait_seconds: float, failed: Callable[[BaseException], Exception]
) -> None:
    """Fit `trainer` (Ray Train's) to its end; `name` is the progress line's, and the deadline starts anew with a step.

    Raises what `failed` makes of Ray Train's error, and StageError when no step comes within `wait_seconds`.
    """
    outcome = _started(trainer)
    deadline = time.monotonic() + wait_seconds
    progress: Progress | None = None
    shown = 0
    while time.monotonic() < deadline:
        interrupts.check()
        try:
            error = outcome.get(timeout=1.0)
        except queue.Empty:
            lines = steps()
            if not lines or lines[-1]["step"] == shown:
                continue
            shown = lines[-1]["step"]
            deadline = time.monotonic() + wait_seconds
            progress = progress or Progress(name, lines[-1]["steps"], "steps")
            progress.update(shown, f"loss {lines[-1]['loss']:.3g}")
            continue
        if error is None:
            return
        raise failed(error) from error
    raise StageError(
        f"{name}: no step within {wait_seconds:.0f} s (cluster.wait_seconds); start the same command again to go on"
    )


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
