"""What a proof has time for: every case, or those of a short form that begin within some minutes."""

import time
from collections.abc import Sequence
from random import Random
from typing import TypeVar

from benchmarks.frame import COMMIT

Case = TypeVar("Case")


class Allowance:
    """Without `minutes` all cases, in their order; with them as many as begin in time, in an order of the commit's own.

    The first begins whatever the time is: a proof of nothing would be none.
    """

    def __init__(self, minutes: float | None) -> None:
        self._minutes, self._started = minutes, time.monotonic()
        self._begun, self._left_out = 0, list[str]()

    def order(self, cases: Sequence[Case]) -> list[Case]:
        """That in which they are due."""
        return list(cases) if self._minutes is None else Random(COMMIT).sample(cases, len(cases))

    @property
    def is_over(self) -> bool:
        """Whether no further case begins."""
        if self._minutes is None or not self._begun:
            return False
        return time.monotonic() > self._started + 60 * self._minutes

    def has_time_for(self, name: str) -> bool:
        """Whether the case of this name begins now."""
        if self.is_over:
            self.leave_out(name)
            return False
        self._begun += 1
        return True

    def leave_out(self, *names: str) -> None:
        """Cases that do not begin."""
        self._left_out += names

    def told(self) -> str:
        """What was left out, a line; empty where nothing was."""
        return f"not begun within {self._minutes:g} minutes: {', '.join(self._left_out)}\n" if self._left_out else ""
