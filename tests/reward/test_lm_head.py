"""The language model head that a reward model carries along: saved as config and files agree, else told.

Run: python -m pytest tests/reward/test_lm_head.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reward.model import GeneralPreferenceModel
from tests.reward.test_model import GPM6, all_tensors
from tests.tiny import save_tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_head_that_is_not_as_the_config_says_is_told_and_left_out(
    tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", tied)
    model = GeneralPreferenceModel.from_backbone(base, GPM6)
    model.save_pretrained(tmp_path / "plain")
    assert "saved without" not in caplog.text
    tensors = all_tensors(base)
    embedding = tensors["model.embed_tokens.weight"]
    heads = {"lm_head.weight": embedding + 1.0} if tied else {}
    others = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file(others | heads, base / "model.safetensors", metadata={"format": "pt"})
    GeneralPreferenceModel.from_backbone(base, GPM6).save_pretrained(tmp_path / "odd")
    assert "tie_word_embeddings" in caplog.text and "saved without" in caplog.text
    assert "lm_head.weight" not in all_tensors(tmp_path / "odd")


def test_a_copy_of_tied_embeddings_is_no_other_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", True)
    tensors = all_tensors(base)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | copy, base / "model.safetensors", metadata={"format": "pt"})
    model = GeneralPreferenceModel.from_backbone(base, GPM6)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight.add_(1.0)
    model.save_pretrained(tmp_path / "trained")
    assert "saved without" not in caplog.text and "lm_head.weight" not in all_tensors(tmp_path / "trained")
