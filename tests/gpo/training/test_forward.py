"""Which attention a policy is loaded with: that of the device it will work on.

Run: python -m pytest tests/gpo/training/test_forward.py
"""

import gc
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from gpo.config import PolicyConfig
from gpo.training.forward import load_policy
from gpo.training.forward_actor import ForwardActor
from tests.first_calls import first_calls
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


def chosen(policy: Path, monkeypatch: pytest.MonkeyPatch, **options: str) -> str:
    asked: list[Any] = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **given: asked.append(given))
    load_policy(policy, **{"attention": "auto", "device": "cuda", "compute_dtype": "bfloat16", **options})
    found: str = asked[0]["attn_implementation"]
    return found


def test_an_attention_that_is_asked_for_is_taken_but_no_flash_attention_on_a_cpu(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attention in ("flash_attention_2", "sdpa", "eager"):
        assert chosen(policy, monkeypatch, attention=attention) == attention
    assert chosen(policy, monkeypatch, attention="flash_attention_2", device="cpu") == "eager"
    assert chosen(policy, monkeypatch, device="cpu") == "eager"


def gpu_with_flash_attention(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")


def test_auto_is_flash_attention_where_it_is_installed_and_computes_in_the_type(
    policy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gpo.training.forward")
    assert chosen(policy, monkeypatch) == "sdpa"
    assert caplog.messages == ["attention is sdpa: flash-attn is not installed"]
    gpu_with_flash_attention(monkeypatch)
    assert chosen(policy, monkeypatch) == chosen(policy, monkeypatch, compute_dtype="float16") == "flash_attention_2"
    assert caplog.messages[-1] == "attention is flash_attention_2: flash-attn is installed"
    assert chosen(policy, monkeypatch, compute_dtype="float32") == "sdpa"
    assert caplog.messages[-1] == "attention is sdpa: flash-attn does not compute in float32"
    gpu_with_flash_attention(monkeypatch, capability=(7, 5))
    assert chosen(policy, monkeypatch) == "sdpa"
    assert caplog.messages[-1] == "attention is sdpa: flash-attn has no kernel for Tesla T4"


def test_a_model_that_caps_its_scores_is_eager_whatever_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_with_flash_attention(monkeypatch)
    capped = save_tiny_model(tmp_path / "gemma2", "gemma2", layers=1)
    assert chosen(capped, monkeypatch) == "eager"


def test_a_policy_calls_vector_functions_alone_before_its_threads_do(policy: Path) -> None:
    """For the forward's process and for a trainer that is given a path or a model; pytorch/pytorch issue 188792."""
    for loaded in (
        "from gpo.training.forward import load_policy\n"
        "model = load_policy(Path(sys.argv[1]), attention='auto', device='cpu')",
        "from gpo.training.starting import starting_model\nfrom gpo.training.trainer_config import GPOConfig\n"
        "model = starting_model(sys.argv[1], GPOConfig(output_dir=sys.argv[1], report_to='none', use_cpu=True), {})",
        "from gpo.cpu import prepare_process\nfrom transformers import AutoModelForCausalLM\nprepare_process(1)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])",
    ):
        body = f"import sys, torch\nfrom pathlib import Path\n{loaded}\nmodel(torch.ones((1, 9), dtype=torch.long))"
        assert first_calls(body, str(policy)) == {"cos": 1, "sin": 1}


def test_the_forward_process_forgets_a_model_with_the_question(policy: Path, tmp_path: Path) -> None:
    """Its parts hold each other in circles: without a collection it would stay until Python's next full one."""
    actor = ForwardActor(PolicyConfig(model=str(policy), dtype="float32").model_dump(mode="json"), str(tmp_path), 1)
    actor.canary_logps(str(policy))
    assert not [one for one in gc.get_objects() if isinstance(one, LlamaForCausalLM)]
