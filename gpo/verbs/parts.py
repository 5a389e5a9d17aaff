"""What several verbs need: number options, and quiet libraries."""

import argparse
import logging
import os
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def count(text: str) -> int:
    """argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def quiet_libraries() -> None:
    """Chatter of the libraries goes to files; only our own sentences reach the terminal."""
    from gpo.cluster import QUIET
    from gpo.logs import log_to_terminal

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    log_to_terminal()
