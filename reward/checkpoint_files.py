"""The small files of a checkpoint directory, and the weights that are refused; needs no torch.
What it is: JSON objects, a training's result, the index of shards and the look for pickles, for the checks in front of
a command and for `reward.checkpoint` alike. What it is not: it opens no weights.
"""

import json
import os
from pathlib import Path
from typing import Any

from reward.errors import RewardInputError

METRICS_FILE = "training_metrics.json"
"""What a training found; it is written last, so where it is the training is finished."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds; raises RewardInputError when it is damaged or holds something else."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RewardInputError(f"{file} is not readable JSON ({error}); copy the checkpoint again") from error
    if not isinstance(value, dict):
        raise RewardInputError(f"{file} holds a {type(value).__name__}, expected an object; copy the checkpoint again")
    return value


def write_object(file: Path, value: dict[str, Any]) -> None:
    """Replace the file at once with a JSON object; raises ValueError for NaN and infinity, which are no JSON."""
    # Nodes that share a disk count their processes alike.
    part = file.with_name(f".{file.name}.part-{os.uname().nodename}-{os.getpid()}")
    part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")
    part.replace(file)


def read_weight_map(directory: Path) -> dict[str, str]:
    """The name of the shard that holds each tensor.

    Raises RewardInputError when the index does not say it, or names what is no safetensors file beside it.
    """
    index = directory / INDEX_FILE
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise RewardInputError(f"{index} has no `weight_map` of tensors to files; copy the checkpoint again")
    for shard in found.values():
        # transformers would unpickle any other file that it finds named here.
        if not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise RewardInputError(
                f"{index} names {shard!r}, expected the names of .safetensors files beside it: unpickling runs code "
                "from the file. Convert it first, where you trust the file (load it, then save_pretrained)"
            )
    return found


def refuse_pickles(directory: Path) -> None:
    """Raises RewardInputError when a directory holds pickled weights; called where there are no safetensors."""
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise RewardInputError(
            f"{directory} holds its weights as {pickles[0]}: unpickling runs code from the file, so only "
            "safetensors are read. Convert it first, where you trust the file (load it, then save_pretrained)"
        )
