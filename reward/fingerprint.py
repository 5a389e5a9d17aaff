"""What a restart compares instead of files: their content as one short text.
What it is: a data file and a checkpoint's small files in full, weights by their header and the beginning of each
tensor, so that a model of many gigabytes is known again in a moment, also where it was copied to. What it is not: a
checksum; a file that was damaged later on in a tensor looks the same.
"""

import hashlib
import json
from pathlib import Path

from reward.errors import RewardInputError

_MODEL_FILES = (
    "config.json tokenizer* special_tokens_map.json added_tokens.json chat_template* vocab.json merges.txt"
).split()
_BEGINNING = 64 * 1024
"""Bytes of each tensor; training moves all of a tensor's numbers, and heads are hardly longer."""


def file_fingerprint(path: Path) -> str:
    """Of the whole content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_fingerprint(directory: Path) -> str:
    """Of all files of a checkpoint that decide its numbers; raises RewardInputError for damaged weights."""
    small = sorted({path for pattern in _MODEL_FILES for path in directory.glob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in small:
        digest.update(f"{path.name} {file_fingerprint(path)}\n".encode())
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(f"{path.name} {weights_fingerprint(path)}\n".encode())
    return digest.hexdigest()


def weights_fingerprint(path: Path) -> str:
    """Of one safetensors file; raises RewardInputError where its header is damaged."""
    whole = path.stat().st_size
    digest = hashlib.sha256(f"{whole} ".encode())
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(size, whole))
        digest.update(header)
        try:
            tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
            spans = sorted((int(start), int(end)) for start, end in (one["data_offsets"] for one in tensors.values()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RewardInputError(
                f"{path} cannot be read ({error}); expected a safetensors file: copy the checkpoint again"
            ) from error
        for start, end in spans:
            stream.seek(8 + size + start)
            digest.update(stream.read(min(end - start, _BEGINNING)))
    return digest.hexdigest()
