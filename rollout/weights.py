"""Publishing weights on disk: a plain Hugging Face directory, and a marker written last.

The marker holds a content hash and the version. A directory without it is unfinished, one whose hash differs is
damaged or stale; neither is ever loaded. Beside full weights the same version may lie as LoRA adapters, marked alike.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rollout.durable import sync
from rollout.errors import RolloutInputError

MARKER = "gpo_weights.json"
ADAPTER = "adapter"
"""Folder of a published directory: its version as LoRA adapters on the starting policy."""
ADAPTER_CONFIG = "adapter_config.json"
"""What a directory of LoRA adapters has and one of full weights has not."""
FORMAT_VERSION = 1
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class WeightMarker:
    """What a published directory says of itself."""

    version: str
    sha256: str
    format_version: int = FORMAT_VERSION


def content_hash(directory: Path) -> str:
    """SHA-256 over names and bytes of the safetensors files and the config of the model or of the adapters.

    Raises RolloutInputError when there are no safetensors weights: pickled ones are never read.
    """
    files = _hashed_files(directory)
    if files[0].suffix != ".safetensors":
        pickled = [path.name for path in directory.glob("*.bin")]
        found = f"found {', '.join(pickled)} only" if pickled else "found none"
        raise RolloutInputError(
            f"{directory}: no *.safetensors weights ({found}); pickled weights are refused because loading them can "
            "run code: convert with transformers' save_pretrained"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _hashed_files(directory: Path) -> list[Path]:
    """The weights and behind them the config that belongs to them."""
    adapted = (directory / ADAPTER_CONFIG).is_file()
    config = directory / (ADAPTER_CONFIG if adapted else "config.json")
    return [*sorted(directory.glob("*.safetensors")), config]


def mark_published(directory: Path, label: str) -> WeightMarker:
    """Write the marker of a finished directory; the version is the label and the head of the content hash.

    What it speaks of is on the disk before it, and it is when this returns.
    """
    sha256 = content_hash(directory)
    marker = _write_marker(directory, WeightMarker(version=f"{label}-{sha256[:12]}", sha256=sha256))
    sync(directory.parent)  # which has the directory's own name
    return marker


def publish_adapter(trained: Path, checkpoint: Path) -> None:
    """Put the adapters of the directory `trained` beside the full weights of a published one, as its version."""
    target = checkpoint / ADAPTER
    part = checkpoint / f".{ADAPTER}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for path in trained.glob("adapter_*"):
        shutil.copy2(path, part)
    _write_marker(part, WeightMarker(verify_published(checkpoint).version, content_hash(part)))
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _write_marker(directory: Path, marker: WeightMarker) -> WeightMarker:
    for path in directory.iterdir():
        sync(path)
    part = directory / f".{MARKER}.part-{os.uname().nodename}-{os.getpid()}"
    with part.open("w") as stream:
        json.dump(asdict(marker), stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(directory / MARKER)
    sync(directory)
    return marker


def read_marker(directory: Path) -> WeightMarker | None:
    """The marker, or None where the directory was never finished, or the marker is damaged."""
    try:
        marker = WeightMarker(**json.loads((directory / MARKER).read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return marker if isinstance(marker.version, str) and isinstance(marker.sha256, str) else None


def verify_published(directory: Path) -> WeightMarker:
    """The marker of a directory whose content agrees with it; raises ValueError otherwise."""
    marker = read_marker(directory)
    if marker is None:
        raise ValueError(f"{directory / MARKER}: no valid marker; these weights were never published in full")
    found = content_hash(directory)
    if found != marker.sha256:
        files = ", ".join(map(str, _hashed_files(directory)))
        raise ValueError(
            f"content hash {found[:12]} (of {files}) is not the published {marker.sha256[:12]} (in "
            f"{directory / MARKER})"
        )
    return marker


def verified_version(directory: Path) -> str:
    """Of a published directory whose content agrees with its marker; raises ValueError otherwise."""
    return _verified_version(directory.absolute(), _file_stamps(directory))


def _file_stamps(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file."""
    files = ((path.name, path.stat()) for path in sorted(directory.iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


@cache
def _verified_version(directory: Path, _stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hashing a checkpoint takes seconds a GiB, so once a process while no file of it changes."""
    return verify_published(directory).version
