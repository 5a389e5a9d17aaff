"""Embeddings of baseline answers that an earlier iteration computed, found again by content.

The baseline files of a run are the cache: nothing is stored twice. Looked up by reward model, prompt and texts.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rollout.records import BaselineRow, read_baseline


class EmbeddingCache:
    """What the baseline files below a folder hold of one reward model; read once, when first asked."""

    def __init__(self, iterations: Path, source: str) -> None:
        self._iterations = iterations
        self._source = source
        self._rows: dict[bytes, BaselineRow] | None = None

    def find(self, prompt_id: str, texts: Sequence[str]) -> BaselineRow | None:
        """The row with these very answers to this prompt, or None."""
        if self._rows is None:
            files = sorted(self._iterations.glob("*/baseline/*/shard-*.parquet"))
            found = [row for path in files for row in read_baseline(path)]
            self._rows = {content_key(row.prompt_id, row.completion): row for row in found if self._serves(row)}
        return self._rows.get(content_key(prompt_id, texts))

    def _serves(self, row: BaselineRow) -> bool:
        return row.source == self._source and row.embedding is not None


def content_key(prompt_id: str, texts: Sequence[str]) -> bytes:
    """Of a prompt (its id is a hash of its messages) and answers to it."""
    return hashlib.sha256(json.dumps([prompt_id, list(texts)]).encode()).digest()
