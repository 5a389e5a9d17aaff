"""What "auto" and None become: back end, device and type, and what is asked for of nobody.

Run: python -m pytest tests/reward/test_placement.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward.compute_type import computes_bfloat16
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.placement import choose_backend, choose_placement
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.tiny import read_json, save_tiny_model

torch.set_num_threads(1)
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def save_scorer(folder: Path, dtype: torch.dtype) -> Path:
    base = save_tiny_model(folder / "base", dtype=dtype, layers=1)
    model = GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6, True), seed=1)
    model.save_pretrained(folder / "gpm")
    return folder / "gpm"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("half"), torch.bfloat16)


def type_of(scorer: PreferenceScorer) -> torch.dtype:
    dtype: torch.dtype = scorer.backend.model.backbone.dtype  # type: ignore[attr-defined]
    return dtype


@pytest.mark.parametrize(
    ("capabilities", "computes"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_tile": True, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ],
)
def test_bfloat16_needs_instructions_of_its_own(
    capabilities: dict[str, bool], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert computes_bfloat16("cpu") is computes and computes_bfloat16("cuda:0")


def test_torch_tells_the_instructions_under_the_names_that_are_read() -> None:
    """Written for torch 2.13, which names them in the docstring of `torch.cpu.get_capabilities`."""
    told = str(torch.cpu.get_capabilities.__doc__)
    assert all(name in told for name in ("avx512_bf16", "amx_bf16", " bf16", "sve_bf16"))
    assert "architecture" in torch.cpu.get_capabilities()


def test_what_is_no_directory_is_never_looked_for_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reward.checkpoint.AutoConfig.from_pretrained", lambda *args, **keywords: asked.append(args))
    for backend in ("auto", "transformers", "vllm"):
        with pytest.raises(RewardInputError, match="not a checkpoint directory"):
            PreferenceScorer.from_pretrained("owner/name", backend=backend)
    assert asked == []


def test_choices_are_told_with_their_reasons(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: device != "cpu")
    found = choose_placement(half)
    assert (found.backend, found.device, found.dtype) == ("transformers", "cpu", "float32")
    assert [reason.partition(":")[0] for reason in found.reasons] == ["back end", "device", "dtype"]
    given = choose_placement(half, "transformers", "bfloat16", device="cpu")
    assert (given.dtype, given.reasons) == ("bfloat16", ())
    assert choose_placement(half, device="cuda:1").dtype == "bfloat16"


def test_auto_takes_vllm_only_on_a_gpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, reason = choose_backend("auto", None, None)
    assert chosen == "transformers" and "on a CPU it starts faster" in reason
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("reward.placement.find_spec", lambda name: None)
    chosen, reason = choose_backend("auto", None, None)
    assert chosen == "transformers" and "vllm is not installed" in reason
    monkeypatch.setattr("reward.placement.find_spec", lambda name: object())
    chosen, reason = choose_backend("auto", None, None)
    assert chosen == "vllm" and "torch finds a GPU" in reason
    assert choose_backend("auto", "cpu", None)[0] == "transformers"
    chosen, reason = choose_backend("auto", None, "eager")
    assert chosen == "transformers" and "one of its options" in reason


def start_of_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the next engine would be started with."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("reward.backend_vllm.vllm_is_installed", lambda: True)
    monkeypatch.setattr("reward.backend_vllm._prepare_environment", lambda device: seen.update(device=device) or {})
    monkeypatch.setattr("reward.backend_vllm._start", seen.update)
    return seen


def test_vllm_gets_a_device_only_when_the_caller_gave_one(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = start_of_vllm(monkeypatch)
    PreferenceScorer.from_pretrained(half, backend="vllm", dtype="bfloat16")
    assert seen["device"] is None and seen["dtype"] == "bfloat16"
    PreferenceScorer.from_pretrained(half, backend="vllm", device="cpu")
    assert seen["device"] == "cpu"


def test_a_model_in_float64_is_computed_as_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save_scorer(tmp_path, torch.float64)
    scorer = PreferenceScorer.from_pretrained(directory)
    assert type_of(scorer) == torch.float64 and scorer.embed([TALK]).v_ND.dtype == torch.float32
    seen = start_of_vllm(monkeypatch)
    PreferenceScorer.from_pretrained(directory, backend="vllm")
    assert seen["dtype"] == "float32"
    with pytest.raises(RewardInputError, match="dtype is 'float64', expected one of"):
        PreferenceScorer.from_pretrained(directory, dtype="float64")


def test_a_config_without_a_type_follows_the_weights(half: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(half, tmp_path / "gpm"))
    # In one type, as published; ours keep heads in float32.
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {name: value for name, value in read_json(directory / "config.json").items() if "dtype" not in name}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    assert type_of(PreferenceScorer.from_pretrained(directory)) == torch.bfloat16
