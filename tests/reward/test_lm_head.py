"""The language model head that a reward model carries along: saved as config and files agree, else told.

Run: python -m pytest tests/reward/test_lm_head.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

GPM6 = RewardSettings.published(6, True)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_head_that_is_not_as_the_config_says_is_told_and_left_out(
    tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", tied)
    model = GeneralPreferenceModel.from_backbone(base, GPM6)
    model.save_pretrained(tmp_path / "plain")
    assert "saved without" not in caplog.text
    tensors = tensors_of(base)
    embedding = tensors["model.embed_tokens.weight"]
    heads = {"lm_head.weight": embedding + 1.0} if tied else {}
    others = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file(others | heads, base / "model.safetensors", metadata={"format": "pt"})
    GeneralPreferenceModel.from_backbone(base, GPM6).save_pretrained(tmp_path / "odd")
    assert "tie_word_embeddings" in caplog.text and "saved without" in caplog.text
    assert "lm_head.weight" not in tensors_of(tmp_path / "odd")


def test_a_copy_of_tied_embeddings_is_no_other_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", True)
    tensors = tensors_of(base)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | copy, base / "model.safetensors", metadata={"format": "pt"})
    model = GeneralPreferenceModel.from_backbone(base, GPM6)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight.add_(1.0)
    model.save_pretrained(tmp_path / "trained")
    assert "saved without" not in caplog.text and "lm_head.weight" not in tensors_of(tmp_path / "trained")


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}
