"""Ctrl-C and SIGTERM: remembered, and raised as KeyboardInterrupt, the one exception that Ray lets through its waits.

Libraries sometimes swallow an exception that a signal raises inside them (an import, a callback), so every wait and
every stage asks `check` as well.
"""

import signal
from types import FrameType

received: list[int] = []
"""Signals so far."""


def install() -> None:
    """Take both signals; call it again after a library that takes them for itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _remember)


def _remember(number: int, _frame: FrameType | None) -> None:
    received.append(number)
    raise KeyboardInterrupt


def check() -> None:
    """Raises KeyboardInterrupt when a signal came, also one whose exception was swallowed."""
    if received:
        raise KeyboardInterrupt


def terminated() -> bool:
    """Whether it was SIGTERM that came first."""
    return received[:1] == [signal.SIGTERM]
