"""A checkpoint directory with damaged or pickled files is refused in one sentence, wherever it is opened.

Run: python -m pytest tests/reward/test_damaged_files.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from reward.checkpoint import read_tensors
from reward.errors import RewardInputError
from reward.heads import open_heads
from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from reward.source_check import check_source
from reward.starting_model import open_model
from reward.training_settings import AdapterSettings, TrainingSettings
from tests.tiny import read_json, save_tiny_model

OPENERS: dict[str, Callable[[Path], Any]] = {
    "model": GeneralPreferenceModel.from_pretrained,
    "scorer": PreferenceScorer.from_pretrained,
    "heads": lambda directory: open_heads(directory, 64),
    "check": lambda directory: check_source(f"gpm:{directory}"),
}
QLORA = TrainingSettings(adapter=AdapterSettings(rank=2, quantized=True))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    base = save_tiny_model(tmp_path / "base", layers=1)
    reward = GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6, True), seed=1)
    reward.save_pretrained(tmp_path / "gpm", max_shard_size="60KB")
    return tmp_path / "gpm"


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("content", [b'{"model_type": ', b"[]", b"\xff\xfe{}"])
def test_a_damaged_config_is_named(model: Path, opener: str, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    with pytest.raises(RewardInputError, match=r"config\.json") as caught:
        OPENERS[opener](model)
    assert "copy the checkpoint again" in str(caught.value)


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"value_head.weight": 3}}'])
def test_a_damaged_index_is_named(model: Path, opener: str, content: str) -> None:
    (model / "model.safetensors.index.json").write_text(content)
    with pytest.raises(RewardInputError, match=r"model\.safetensors\.index\.json.*copy the checkpoint again"):
        OPENERS[opener](model)
    with pytest.raises(RewardInputError, match="index"):
        read_tensors(model, ["value_head.weight"])


def test_settings_that_are_no_object_are_refused(model: Path) -> None:
    config = {**read_json(model / "config.json"), "gpo_reward": "gpm"}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(RewardInputError, match="gpo_reward = 'gpm', expected an object"):
        GeneralPreferenceModel.from_pretrained(model)


def pickled(model: Path) -> Path:
    for path in model.glob("model*.safetensors*"):
        path.unlink()
    torch.save({}, model / "pytorch_model.bin")
    return model


def test_a_pickled_model_is_refused_with_what_to_do(model: Path) -> None:
    pickled(model)
    for opener in OPENERS.values():
        with pytest.raises(RewardInputError, match=r"pytorch_model\.bin: unpickling runs code.*Convert it first"):
            opener(model)


@pytest.mark.parametrize("name", ["a.bin", "../a.safetensors", "/tmp/a.safetensors", "..\\a.safetensors"])
def test_an_index_may_name_nothing_but_safetensors_beside_it(model: Path, name: str) -> None:
    index = model / "model.safetensors.index.json"
    named = read_json(index)["weight_map"] | {"model.norm.weight": name}
    index.write_text(json.dumps({"weight_map": named}))
    openers = {
        **OPENERS,
        "backbone": lambda path: GeneralPreferenceModel.from_backbone(path, RewardSettings.published(6)),
    }
    for opener in openers.values():
        with pytest.raises(RewardInputError, match="expected the names of .safetensors files beside it"):
            opener(model)


def test_a_backbone_for_adapters_is_never_unpickled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.starting_model.quantization", lambda precision: None)
    opened: list[dict[str, Any]] = []
    original = AutoModel.from_pretrained

    def from_pretrained(*args: Any, **keywords: Any) -> Any:
        opened.append(keywords)
        return original(*args, **keywords)

    monkeypatch.setattr("reward.starting_model.AutoModel.from_pretrained", from_pretrained)
    open_model(model, QLORA)
    assert [keywords["use_safetensors"] for keywords in opened] == [True]
    with pytest.raises(RewardInputError, match="unpickling runs code"):
        open_model(pickled(model), QLORA)
    assert len(opened) == 1


def test_settings_and_heads_of_a_model_for_adapters_are_read_without_its_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_model(tmp_path / "base", layers=1)
    saved = RewardSettings.published(6, True, tau=0.3, bos_policy="single")
    before = GeneralPreferenceModel.from_backbone(base, saved, seed=1)
    before.save_pretrained(tmp_path / "gpm")
    monkeypatch.setattr("reward.starting_model.quantization", lambda precision: None)

    def never(*args: Any, **keywords: Any) -> None:
        raise AssertionError("the backbone is read a second time")

    monkeypatch.setattr(GeneralPreferenceModel, "from_pretrained", never)
    model = open_model(tmp_path / "gpm", QLORA)
    assert model.settings == saved
    for name, tensor in before.heads.state_dict().items():
        assert torch.equal(model.heads.state_dict()[name], tensor)
