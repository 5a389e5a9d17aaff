"""A real engine takes LoRA adapters on the policy that it was started with, and full weights in between.

Run: python -m pytest tests/rollout/test_adapters.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpo.cluster.runtime import make_actor, ray_session
from gpo.training.forward import token_logps
from gpo.training.log_probs import add_log_prob_head
from rollout.cores import FOLDER_VARIABLE
from rollout.engine_settings import EngineSettings
from rollout.sampler import Sampler
from rollout.weights import ADAPTER, mark_published, publish_adapter, read_marker
from tests.gpo.small_runs import run_config
from tests.tiny import save_tiny_model

ROWS = [([1, 2, 3], [4, 5, 6, 7, 8, 9]), ([30, 31], [32, 33, 34])]
Logps = list[list[float]]


def save_adapted(policy: Path, trained: Path, merged: Path, seed: int) -> Logps:
    """A random adapter as a learner leaves it, and the merged model; returns the trainer's log-probabilities."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(policy)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(trained)
    full: Any = model.merge_and_unload()
    full.save_pretrained(merged)
    AutoTokenizer.from_pretrained(policy).save_pretrained(merged)
    mark_published(merged, "001")
    add_log_prob_head(full)
    return [row.tolist() for row in token_logps(full.eval(), ROWS, "float32")]


@pytest.fixture()
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Calls a method of a sampler that takes adapters of `policy` in the test's folder."""
    import ray

    policy = save_tiny_model(tmp_path / "policy")
    settings = EngineSettings(max_model_len=64, threads=1, dtype="float32", lora_rank=3, lora_base=str(policy))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))
    with ray_session(run_config(cluster={"threads": 1}), tmp_path, "a run"):
        actor = make_actor(Sampler, settings, threads=1, role="sampler")
        yield lambda name, *arguments: ray.get(getattr(actor, name).remote(*arguments), timeout=300)


def difference(ours: Logps, theirs: Logps) -> float:
    return max(abs(a - b) for xs, ys in zip(ours, theirs, strict=True) for a, b in zip(xs, ys, strict=True))


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="vLLM 0.32 on a CPU fails on a prompt's log-probabilities under an adapter; gpo refuses it there",
)
def test_an_engine_holds_what_was_trained_as_an_adapter_and_as_merged_weights(
    tmp_path: Path, call: Callable[..., Any]
) -> None:
    policy = tmp_path / "policy"
    expected = {}
    for number in (1, 2):
        checkpoint = tmp_path / str(number)
        expected[number] = save_adapted(policy, tmp_path / f"trained-{number}", checkpoint, seed=number)
    assert difference(expected[1], expected[2]) > 0.1

    def loaded(number: int) -> Logps:
        marker = read_marker(tmp_path / str(number))
        assert marker is not None
        call("load", str(tmp_path / str(number)), marker.version)
        found: Logps = call("answer_logps", ROWS)
        return found

    assert difference(loaded(2), expected[2]) < 1e-3, "merged weights, though the engine starts with the policy"
    publish_adapter(tmp_path / "trained-1", tmp_path / "1")
    assert difference(loaded(1), expected[1]) < 1e-3, "an adapter, on the policy and not on those merged weights"
    publish_adapter(tmp_path / "trained-2", tmp_path / "2")
    assert difference(loaded(2), expected[2]) < 1e-3, "the next adapter instead of the first"
    call("load", str(policy), None)
    start = call("answer_logps", ROWS)
    assert min(difference(start, expected[number]) for number in (1, 2)) > 0.1, "the policy without any"
    weights = tmp_path / "1" / ADAPTER / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="content hash"):
        loaded(1)
