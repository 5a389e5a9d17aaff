"""A mistake of the caller's that only a worker could see ends a training by Ray Train at once.

Imported late, because Ray Train takes seconds. Private to Ray 2.60: `_base_exc` of what a worker raised, and that an
error of a callback is never tried again; tests/contract/test_ray.py holds both.
"""

from typing import Any

from ray.train import UserCallback

from reward.errors import RewardInputError


class Mistakes(UserCallback):
    """Raises a worker's RewardInputError in the controller: Ray Train starts workers again whatever they raise."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """`worker_exceptions`: by the worker's rank."""
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, RewardInputError):
                raise cause
