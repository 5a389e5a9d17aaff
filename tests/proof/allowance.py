"""What a proof has time for: every case, or those of a short form that begin within some minutes."""

import time
from collections.abc import Sequence
from random import Random
from typing import TypeVar

from benchmarks.frame import COMMIT

Case = TypeVar("Case")


class Allowance:
    """Without `minutes` all cases, in their order; else those that begin in time, in an order of the commit's own."""

    def __init__(self, minutes: float | None) -> None:
        self._minutes, self._started = minutes, time.monotonic()
        self._left_out: list[str] = []

    def order(self, cases: Sequence[Case]) -> list[Case]:
        """That in which they are due."""
        return list(cases) if self._minutes is None else Random(COMMIT).sample(cases, len(cases))

    def is_over(self, *names: str) -> bool:
        """Whether it is too late for the cases of these names, which are told at the end."""
        over = self._minutes is not None and time.monotonic() > self._started + 60 * self._minutes
        self._left_out += names if over else ()
        return over

    def told(self) -> str:
        """What was left out, a line; empty where nothing was."""
        return f"not begun within {self._minutes:g} minutes: {', '.join(self._left_out)}\n" if self._left_out else ""
