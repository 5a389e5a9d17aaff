"""Embeddings of the data set's answers that an earlier iteration computed, found again by content.

The baseline files of a run are the cache: nothing is stored twice. Looked up by reward model, prompt and texts; only
embeddings are held in memory, about half a KiB a prompt.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rollout.records import BaselineRow, read_baseline

Embedded = tuple[np.ndarray, np.ndarray | None]
"""Embeddings [M, D] and gate [L] of one prompt's answers, float32; no gate where the model has none."""


class EmbeddingCache:
    """What the baseline files of earlier iterations hold of one reward model."""

    def __init__(self, source: str) -> None:
        """`source` names the reward model."""
        self._source = source
        self._known: dict[bytes, Embedded] = {}
        self._read: set[Path] = set()

    def read_before(self, folder: Path) -> None:
        """Take in what iterations before that of `folder` (`iterations/NNN/baseline/NAME`) left in theirs.

        Each is read once: its files never change.
        """
        iteration = folder.parents[1]
        for earlier in sorted(iteration.parent.glob(f"*/baseline/{folder.name}")):
            if int(earlier.parents[1].name) < int(iteration.name) and earlier not in self._read:
                self._read.add(earlier)
                for path in sorted(earlier.glob("shard-*.parquet")):
                    self._take_in(read_baseline(path))

    def find(self, prompt_id: str, texts: Sequence[str]) -> Embedded | None:
        """Of these very answers to this prompt, or None."""
        return self._known.get(content_key(prompt_id, texts))

    def _take_in(self, rows: list[BaselineRow]) -> None:
        for row in rows:
            if row.source == self._source and row.embedding is not None:
                gate_L = None if row.gate is None else np.array(row.gate, dtype=np.float32)
                key = content_key(row.prompt_id, row.completion)
                self._known[key] = np.array(row.embedding, dtype=np.float32), gate_L


def content_key(prompt_id: str, texts: Sequence[str]) -> bytes:
    """Of a prompt (its id is a hash of its messages) and answers to it."""
    return hashlib.sha256(json.dumps([prompt_id, list(texts)]).encode()).digest()
