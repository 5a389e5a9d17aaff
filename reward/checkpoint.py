"""The files of a checkpoint directory: named tensors out of the shards that hold them, whole new files in.
What it is: reading and writing safetensors in the Hugging Face layout. What it is not: it never opens
pickled weights, and it does not know what the tensors mean.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from reward.checkpoint_files import INDEX_FILE, SINGLE_FILE, read_weight_map, refuse_pickles
from reward.errors import RewardInputError
from reward.published_spelling import TEMPLATE_FILE, TOKENIZER_CONFIG

WORDS_KEPT = 1000
"""Of a tokenizer, whose tokens it remembers."""
_TYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Those that a model is computed in, by their names in a safetensors header."""


def read_tensors(directory: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the checkpoint has; opens only the safetensors files that hold them.

    Raises RewardInputError where one of its files is missing or damaged.
    """
    check_directory(directory)
    found: dict[str, Tensor] = {}
    for path, wanted in _holders(directory, names).items():
        with _opened(path) as tensors:
            here = set(tensors.keys())
            found |= {name: tensors.get_tensor(name) for name in wanted if name in here}
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; raises RewardInputError for one that is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise RewardInputError(
            f"{path} cannot be read ({error}); expected a safetensors file: copy the checkpoint again"
        ) from error


def _holders(directory: Path, names: Sequence[str]) -> dict[Path, list[str]]:
    """Which file to open for which names."""
    if (directory / SINGLE_FILE).exists():
        # As transformers does: a single file goes before an index that lies next to it.
        return {directory / SINGLE_FILE: list(names)}
    shard_of = read_weight_map(directory)
    holders: dict[Path, list[str]] = {}
    for name in names:
        if name in shard_of:
            holders.setdefault(directory / shard_of[name], []).append(name)
    return holders


def stored_type(directory: Path) -> str:
    """torch's name of the type in which most numbers lie, so the backbone's; only the files' headers are read.

    "" for a type that torch computes nothing in. Raises RewardInputError where a file is missing or damaged.
    """
    single = (directory / SINGLE_FILE).exists()
    names = [SINGLE_FILE] if single else sorted(set(read_weight_map(directory).values()))
    numbers: Counter[str] = Counter()
    for path in (directory / name for name in names):
        with _opened(path) as tensors:
            for name in tensors.keys():
                part = tensors.get_slice(name)
                numbers[part.get_dtype()] += math.prod(part.get_shape())
    return _TYPES.get(max(numbers, key=numbers.__getitem__, default=""), "")


def check_directory(directory: Path) -> None:
    """Raises RewardInputError for what is no safetensors checkpoint, before anything heavy starts."""
    if not (directory / "config.json").is_file():
        raise RewardInputError(
            f"{directory} is not a checkpoint directory (no config.json in it). A model of a hub is "
            "downloaded first: `hf download OWNER/NAME --local-dir DIR`"
        )
    if (directory / SINGLE_FILE).exists():
        return
    if (directory / INDEX_FILE).exists():
        read_weight_map(directory)
        return
    refuse_pickles(directory)
    raise RewardInputError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; expected safetensors weights")


def load_config(directory: str | Path, trust_remote_code: bool = False) -> Any:
    """transformers' config of a checkpoint; raises RewardInputError where it cannot be made."""
    return loaded(directory, "config.json", AutoConfig.from_pretrained, trust_remote_code=trust_remote_code)


def load_tokenizer(directory: str | Path, trust_remote_code: bool = False, **options: Any) -> Any:
    """transformers' tokenizer of a checkpoint; raises RewardInputError where it cannot be made."""
    tokenizer = loaded(
        directory, "its tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=trust_remote_code, **options
    )
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        # transformers takes it as it is and fails at the first text.
        raise RewardInputError(f"{directory}: model_max_length of its tokenizer is {longest!r:.60}, expected a number")
    _bound_words(tokenizer)
    return tokenizer


def _bound_words(tokenizer: Any) -> None:
    """Have a fast tokenizer remember the tokens of few words: its 10,000 take 60 MiB where each is odd and long, and a
    process that lives for a whole run comes to that. Text of people repeats the few."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    resize = getattr(model, "_resize_cache", None)  # BPE has it in tokenizers 0.23; without it all works as before.
    if resize is not None:
        resize(WORDS_KEPT)


def loaded(directory: str | Path, what: str, load: Callable[..., Any], **options: Any) -> Any:
    """What `load(directory, **options)` gives; a damaged file becomes one sentence that names directory and part."""
    try:
        return load(directory, **options)
    except Exception as error:  # transformers and tokenizers raise every kind for a damaged file
        said = " ".join(str(error).split())
        raise RewardInputError(
            f"{directory}: {what} cannot be loaded ({type(error).__name__}: {said:.300}); copy the checkpoint again"
        ) from error


def write_tensors(tensors: dict[str, Tensor], directory: Path, max_shard_size: str) -> None:
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for filename, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, directory / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def publish(staging: Path, target: Path) -> None:
    """Move whole files into place, and take away weights and template of an earlier save under other names."""
    (target / "config.json").unlink(missing_ok=True)
    written = {path.name for path in staging.iterdir()}
    if TOKENIZER_CONFIG in written:
        # transformers 5 would take it instead of the template inside.
        (target / TEMPLATE_FILE).unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if path.name == "config.json":
            for stale in [*target.glob("model*.safetensors"), target / INDEX_FILE]:
                if stale.name not in written:
                    stale.unlink(missing_ok=True)
        os.replace(path, target / path.name)
