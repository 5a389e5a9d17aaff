"""Which attention a policy is loaded with: that of the device it will work on.

Run: python -m pytest tests/gpo/training/test_forward.py
"""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from gpo.config import PolicyConfig
from gpo.training.forward import load_policy
from gpo.training.forward_actor import ForwardActor
from tests.tiny import save_tiny_model


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "policy", layers=1)


def test_the_forward_process_computes_on_the_cpu_whatever_the_learner_attends_with(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = {}
    for attention in ("eager", "flash_attention_2"):
        config = PolicyConfig(model=str(policy), dtype="float32", attention=attention)
        actor = ForwardActor(config.model_dump(mode="json"), str(tmp_path / "logs"), 1)
        found[attention] = actor.canary_logps(str(policy))
    assert found["flash_attention_2"] == found["eager"]


def test_flash_attention_is_asked_for_where_the_model_will_work_on_a_gpu(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **given: asked.append(given))
    for attention in ("flash_attention_2", "auto", "eager"):
        for device in ("cuda", "cpu"):
            load_policy(policy, attention=attention, device=device)
    found = [given["attn_implementation"] for given in asked]
    assert found == ["flash_attention_2", "eager", "sdpa", "eager", "eager", "eager"]
