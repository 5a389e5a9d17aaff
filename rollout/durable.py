"""What lasts through a power cut: the one call for files and for directories."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return when what a file holds, or which names a directory has, lies on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
