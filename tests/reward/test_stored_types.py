"""A backbone stored in bfloat16 and computed in float32 gives the numbers of a float32 copy of the same weights.

Run: python -m pytest tests/reward/test_stored_types.py
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.reward import published
from tests.tiny import read_json, save_tiny_model

torch.set_num_threads(1)
ANSWERS = ("The North Sea.", "Everest", "", "a grey, cold and shallow sea")
TALKS = [[{"role": "user", "content": "Name a sea."}, {"role": "assistant", "content": text}] for text in ANSWERS]


def copy_in(directory: Path, target: Path, dtype: torch.dtype) -> Path:
    """The same checkpoint with every tensor in another type."""
    shutil.copytree(directory, target)
    tensors = load_file(directory / "model.safetensors")
    save_file({name: one.to(dtype) for name, one in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    config = {name: value for name, value in read_json(directory / "config.json").items() if "dtype" not in name}
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def plain_embeddings(directory: Path, rows: list[list[int]]) -> Tensor:
    """Row by row through transformers' own causal model in eager attention, the head by hand."""
    causal = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    value_head = load_file(directory / "model.safetensors")["value_head.weight"].float()
    with torch.no_grad():
        states = [causal(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1] for ids in rows]
    return torch.nn.functional.normalize(torch.stack(states) @ value_head.T, dim=-1)


def check(half: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: False)
    stored, copied = (PreferenceScorer.from_pretrained(one) for one in (half, wide))
    found, expected = stored.embed(TALKS), copied.embed(TALKS)
    assert torch.equal(found.v_ND, expected.v_ND)
    assert found.gate_NL is not None and expected.gate_NL is not None
    assert torch.equal(found.gate_NL, expected.gate_NL)
    rows = [row.input_ids for row in stored.encoder.encode(TALKS)]
    torch.testing.assert_close(found.v_ND, plain_embeddings(wide, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma", "gemma2"])
def test_weights_in_bfloat16_computed_in_float32_are_their_float32_copy(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = model_type.startswith("gemma")
    base = save_tiny_model(tmp_path / "base", model_type, tied=tied, dtype=torch.bfloat16)
    model = GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6, True), seed=1)
    model.save_pretrained(tmp_path / "half")
    check(tmp_path / "half", copy_in(tmp_path / "half", tmp_path / "wide", torch.float32), monkeypatch)


@published.present
def test_a_published_checkpoint_rounded_to_bfloat16_is_its_float32_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = copy_in(published.checkpoint("llama_d6_gated"), tmp_path / "half", torch.bfloat16)
    check(half, copy_in(half, tmp_path / "wide", torch.float32), monkeypatch)
