"""The two small matrices that make a preference model of a backbone.
What it is: `PreferenceHeads` (embedding, normalisation, softmax gate; always computed in float32), and
reading them from a checkpoint with a check that they fit each other and the backbone. What it is not: it
runs no backbone.

Shape suffixes: N rows, H hidden size, D embedding width, L = D / 2 blocks.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward.checkpoint import read_tensors
from reward.checkpoint_files import read_object
from reward.errors import RewardInputError
from reward.settings import RewardSettings

VALUE_HEAD = "value_head.weight"
PROMPT_HEAD = "prompt_head.weight"
_NORM_FLOOR = 1e-12


class PreferenceHeads(nn.Module):
    """Hidden states of two positions in, embedding and gate out; float32 whatever the backbone's type."""

    def __init__(self, hidden_size: int, value_head_dim: int, *, gated: bool, l2_normalize: bool) -> None:
        super().__init__()
        self.l2_normalize = l2_normalize
        self.value_head = nn.Linear(hidden_size, value_head_dim, bias=False, dtype=torch.float32)
        self.prompt_head: nn.Linear | None = None
        if gated:
            self.prompt_head = nn.Linear(hidden_size, value_head_dim // 2, bias=False, dtype=torch.float32)

    def forward(self, answer_NH: Tensor, prompt_NH: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(v_ND, gate_NL) from the states at the last token and at the prompt's end; no gate: None."""
        # Autocast would quietly run the matrix products in half precision.
        with torch.autocast(answer_NH.device.type, enabled=False):
            return self._embed(answer_NH), self._gate(prompt_NH)

    def _embed(self, answer_NH: Tensor) -> Tensor:
        v_ND = F.linear(answer_NH.float(), self.value_head.weight.float())
        return F.normalize(v_ND, dim=-1, eps=_NORM_FLOOR) if self.l2_normalize else v_ND

    def _gate(self, prompt_NH: Tensor | None) -> Tensor | None:
        if self.prompt_head is None:
            return None
        if prompt_NH is None:
            raise RewardInputError("this model has a gate, but no hidden states of the prompt's end were given")
        return torch.softmax(F.linear(prompt_NH.float(), self.prompt_head.weight.float()), dim=-1)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights as published: normal with standard deviation 1 / (H + 1)."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            fresh = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1)
            weight.copy_(fresh)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy head tensors of any float type; widening to float32 is exact."""
        self.value_head.weight.copy_(tensors[VALUE_HEAD])
        if self.prompt_head is not None:
            self.prompt_head.weight.copy_(tensors[PROMPT_HEAD])


def read_head_tensors(directory: Path, hidden_size: int) -> dict[str, Tensor]:
    """The value head and, when there is one, the prompt head of a checkpoint, with consistent shapes."""
    tensors = read_tensors(directory, (VALUE_HEAD, PROMPT_HEAD))
    if VALUE_HEAD not in tensors:
        raise RewardInputError(
            f"{directory} has no tensor {VALUE_HEAD!r}: it is no reward model. Train one with "
            "`gpo reward train`, or start from a plain backbone with GeneralPreferenceModel.from_backbone"
        )
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.shape[1] != hidden_size:
            raise RewardInputError(
                f"{name} in {directory} has shape {list(tensor.shape)}, expected [rows, {hidden_size}] "
                "as the backbone's hidden size; the head belongs to another backbone"
            )
    _check_head_rows(tensors, directory)
    return tensors


def _check_head_rows(tensors: dict[str, Tensor], directory: Path) -> None:
    width = tensors[VALUE_HEAD].shape[0]
    if width == 0 or (width > 1 and width % 2):
        raise RewardInputError(f"{VALUE_HEAD} in {directory} has {width} rows, expected an even number or 1")
    if PROMPT_HEAD in tensors and tensors[PROMPT_HEAD].shape[0] * 2 != width:
        raise RewardInputError(
            f"{PROMPT_HEAD} in {directory} has {tensors[PROMPT_HEAD].shape[0]} rows next to a value head of "
            f"{width}; expected half as many, one weight a block"
        )


def open_heads(directory: Path, hidden_size: int) -> tuple[PreferenceHeads, RewardSettings]:
    """Heads and settings of a checkpoint without its backbone; raises RewardInputError where they do not fit."""
    tensors = read_head_tensors(directory, hidden_size)
    raw_config = read_object(directory / "config.json")
    settings = RewardSettings.from_config(raw_config, tensors[VALUE_HEAD].shape[0], PROMPT_HEAD in tensors)
    heads = PreferenceHeads(
        hidden_size, settings.value_head_dim, gated=settings.gated, l2_normalize=settings.l2_normalize
    )
    heads.load(tensors)
    return heads, settings
