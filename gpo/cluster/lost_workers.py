"""Workers of Ray Train that died or failed, noted in a file. Imported late, because Ray Train takes seconds.

A class of its own for those that die while they start, which Ray Train tries again as often as needed and tells no
user's callback. The hook is private to Ray 2.60; tests/contract/test_ray.py looks at it.
"""

from pathlib import Path
from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback

from gpo.errors import reason_of
from gpo.files import append_json_line


class LostWorkers(UserCallback):
    """Writes a line for each of them; Ray Train calls it in a process of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """`worker_exceptions`: by the worker's rank."""
        for rank, error in sorted(worker_exceptions.items()):
            append_json_line(self._path, {"rank": rank, "reason": reason_of(error)})


class WorkersLostAtStart(ControllerCallback):
    """Writes a line for a group of workers that did not come to its work, because one of them died."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_controller_state_update(self, _before: Any, current_state: Any) -> None:
        """The state after such a death has the error in it, once."""
        failed = getattr(current_state, "training_failed_error", None)
        error = getattr(failed, "controller_failure", None)
        if isinstance(error, WorkerGroupStartupFailedError):
            append_json_line(self._path, {"reason": f"while it started: {reason_of(error)}"})
