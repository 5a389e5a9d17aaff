"""Log-probabilities of the answers under a policy that does not move, once before training, kept beside the shards.

A file is keyed by the weights, the rows and the batch plan: it is used again only where the very same numbers would
come out, and then saves a forward pass over all rows.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from gpo.files import write_json
from gpo.training.batches import StepPlan, Steps


def first_epoch(steps: Steps) -> Iterator[dict[str, Any]]:
    """Every micro-batch of this worker in the first epoch, in order, the idle ones too."""
    for place in range(len(steps)):
        yield from steps[0, place]["parts"]


def reference_key(dataset: Dataset, plan: StepPlan, weights: str, dtype: str) -> str:
    """Names the numbers: hash of the weights' own hash, the rows, the batch plan (not the worker) and the type."""
    digest = hashlib.sha256()
    shared = {name: value for name, value in asdict(plan).items() if name != "rank"}
    digest.update(json.dumps([weights, dtype, shared], sort_keys=True).encode())
    for prompt, completion in zip(dataset["prompt_ids"], dataset["completion_ids"], strict=True):
        for ids in (prompt, completion):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def read_reference(folder: Path, key: str, rows: int) -> Tensor | None:
    """log p [rows] of that key, or None where it was never finished."""
    path = reference_file(folder, key)
    if not path.is_file():
        return None
    logps = torch.tensor(json.loads(path.read_text())["logps"], dtype=torch.float32)
    return logps if len(logps) == rows else None


def write_reference(folder: Path, key: str, logps: Tensor) -> None:
    """Whole when it exists; float32 numbers survive as JSON to the bit."""
    write_json(reference_file(folder, key), {"format_version": 1, "key": key, "logps": logps.tolist()})


def reference_file(folder: Path, key: str) -> Path:
    """Where the numbers of a key lie."""
    return folder / f"reference-{key}.json"
