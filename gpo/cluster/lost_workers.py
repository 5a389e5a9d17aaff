"""Workers of Ray Train that died or failed, noted in a file. Imported late, because Ray Train takes seconds."""

from pathlib import Path
from typing import Any

from ray.train import UserCallback

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
