"""What comes before a vLLM engine, and behind one's sleep on a GPU; other tests start real ones.

Run: python -m pytest tests/rollout/test_engine_start.py
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rollout import engine
from rollout.engine_settings import EngineSettings
from tests.first_calls import first_calls
from tests.tiny import save_tiny_model


def test_vector_functions_are_called_alone_before_an_engine_computes_its_table_of_positions(tmp_path: Path) -> None:
    """vLLM 0.32, whose table is a float32 cosine and sine of all positions, computed at its start."""
    save_tiny_model(tmp_path, layers=1)
    found = first_calls(
        """
import sys, torch, vllm
from pathlib import Path
from rollout.engine import PolicyEngine
from rollout.engine_settings import EngineSettings
vllm.LLM = lambda **_: (torch.cos(torch.ones(9)), torch.sin(torch.ones(9)))
PolicyEngine(Path(sys.argv[1]), EngineSettings(max_model_len=64, threads=1))
""",
        str(tmp_path),
    )
    assert found == {"cos": 1, "sin": 1}


@pytest.mark.parametrize(("level", "again"), [(1, []), (2, ["the policy"])])
def test_weights_that_a_deep_sleep_dropped_are_loaded_again_below_adapters(
    level: int, again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM 0.32 keeps a copy of the weights in the machine's memory at level 1 only."""
    policy, adapter = tmp_path / "the policy", tmp_path / "adapter"
    for folder, name in ((policy, "config.json"), (adapter, "adapter_config.json")):
        folder.mkdir()
        (folder / name).write_text(json.dumps({}))
    loaded: list[str] = []

    def rpc(call: str, kwargs: dict[str, Any]) -> None:
        loaded.append(Path(kwargs["weights_path"]).name)

    nothing: Any = lambda *_, **__: None  # noqa: E731
    llm = SimpleNamespace(sleep=nothing, wake_up=nothing, reset_prefix_cache=nothing, collective_rpc=rpc)
    llm.llm_engine = SimpleNamespace(add_lora=nothing, remove_lora=nothing)
    monkeypatch.setattr(engine, "_start", lambda *_, **__: llm)
    monkeypatch.setattr(engine, "_vllm_runs_on_cpu", lambda: False)
    settings = EngineSettings(max_model_len=64, sleep_level=level, lora_rank=4, lora_base=str(policy))
    for first in (policy, adapter):
        held = engine.PolicyEngine(policy, settings)
        held.rest()
        assert held.wake() == (level == 1)
        held.reload(first)
        assert loaded == again
        loaded.clear()
