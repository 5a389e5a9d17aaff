"""What a number was made from: files by name and content, packages by version."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from gpo.files import file_hash
from rollout.prompts import read_rows


def file_record(path: Path | None) -> dict[str, str] | None:
    """Name and content of a file, of a hub set (`hub:NAME[:SPLIT]`) the content of its rows; None for none."""
    if path is None:
        return None
    if path.is_file():
        return {"file": str(path), "sha256": file_hash(path)}
    digest = hashlib.sha256()
    for row in read_rows(str(path)):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return {"file": str(path), "sha256": digest.hexdigest()}


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Of installed packages."""
    return {name: version(name) for name in names}
