"""Folders that the command line names: made, or refused in one sentence before anything is computed."""

import os
from pathlib import Path

from gpo.errors import UserError


def make_folder(option: str, path: Path) -> None:
    """Make a folder where there is none; raises UserError naming the option where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be made a folder ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: this user may not write there; give another folder")
