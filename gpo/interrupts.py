"""Ctrl-C and SIGTERM: remembered, and raised as KeyboardInterrupt, the one exception that Ray lets through its waits.

Libraries sometimes swallow an exception that a signal raises inside them (an import, a callback), so every wait and
every stage asks `check` as well.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

received: list[int] = []
"""Signals so far."""


def install() -> None:
    """Take both signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _remember)


@contextmanager
def kept_from_ray() -> Iterator[None]:
    """Within, Ray 2.60 puts no handlers of its own on SIGTERM, which exit, or whose exit is lost while it starts."""
    import ray

    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = theirs
        take_back()


def take_back() -> None:
    """Take SIGTERM again where it was taken: in C, unseen by Python, Ray puts a handler of its own before ours when it
    starts, which writes a report as of a crash, and none in the place of both when it ends.
    """
    if signal.getsignal(signal.SIGTERM) is _remember:
        signal.signal(signal.SIGTERM, _remember)


def _remember(number: int, _frame: FrameType | None) -> None:
    # Where Ray's handler came first, it has set an alarm that aborts this process in three seconds.
    signal.alarm(0)
    received.append(number)
    raise KeyboardInterrupt


def check() -> None:
    """Raises KeyboardInterrupt when a signal came, also one whose exception was swallowed."""
    if received:
        raise KeyboardInterrupt


def terminated() -> bool:
    """Whether it was SIGTERM that came first."""
    return received[:1] == [signal.SIGTERM]
