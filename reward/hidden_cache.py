"""Hidden states of a frozen backbone, computed once and kept in a file.
What it is: one safetensors file for each set of token rows, found again by a hash of all that the forward
pass depends on; it appears whole or not at all. What it is not: it trains nothing, and deletes nothing.

Shape suffixes: U different token rows, H hidden size.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reward.backend_transformers import Progress, TransformersBackend
from reward.checkpoint_files import SINGLE_FILE, read_weight_map
from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""1 held states of backbones that were cast, rotary frequencies too."""


@dataclass(frozen=True)
class RowStates:
    """The backbone's last layer at two positions of each row, float32 on the CPU."""

    answer_UH: Tensor
    prompt_UH: Tensor


class HiddenStateCache:
    """Files of hidden states in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def states(
        self,
        model: GeneralPreferenceModel,
        rows: Sequence[EncodedConversation],
        device: str,
        batch_tokens: int,
        progress: Progress | None = None,
    ) -> RowStates:
        """States of `rows` by the backbone in the type it has, on `device`, where it is moved to if it is run.

        Raises RewardInputError for a cache file that cannot be read.
        """
        path = self.folder / f"hidden-{states_key(model, rows)}.safetensors"
        if path.is_file():
            logger.info("hidden states: %d rows read from %s instead of computed", len(rows), path)
            return _read(path)
        model.to(device)
        found = TransformersBackend(model, batch_tokens).hidden_states(rows, progress)
        assert found.prompt_NH is not None  # This back end always reads both.
        states = RowStates(found.answer_NH.float().cpu(), found.prompt_NH.float().cpu())
        _write(states, path)
        return states


def states_key(model: GeneralPreferenceModel, rows: Sequence[EncodedConversation]) -> str:
    """Name of a set of states.

    Token ids stand for conversations, template, policies and max_length at once: whatever leaves the ids as
    they are (a Bradley-Terry twin) shares the file, whatever changes them (an edited template) does not.
    Raises RewardInputError for a model that came from no directory.
    """
    if model.source is None:
        raise RewardInputError("the backbone was given as a loaded model, expected a directory to hash")
    digest = hashlib.sha256(f"{FORMAT_VERSION} {model.backbone.dtype}".encode())
    for path in [model.source / "config.json", *_weight_files(model.source)]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for row in rows:
        digest.update(f"\n{row.prompt_end} {row.input_ids}".encode())
    return digest.hexdigest()[:32]


def _weight_files(directory: Path) -> list[Path]:
    if (directory / SINGLE_FILE).exists():
        return [directory / SINGLE_FILE]
    return [directory / name for name in sorted(set(read_weight_map(directory).values()))]


def _read(path: Path) -> RowStates:
    try:
        return RowStates(**load_file(path))
    except (SafetensorError, TypeError) as error:
        raise RewardInputError(
            f"{path} cannot be read ({error}), expected hidden states; delete it and they are computed again"
        ) from error


def _write(states: RowStates, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.uname().nodename}-{os.getpid()}")
    try:
        tensors = {"answer_UH": states.answer_UH, "prompt_UH": states.prompt_UH}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
