"""docs/training.md does what it says: its example runs, and it names every option and every metric.

Run: python -m pytest tests/docs/test_training_page.py
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import KTOConfig

from gpo.training.trainer import GPOConfig
from gpo.training.watch import step_numbers
from tests.tiny import save_tiny_model

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")


def test_the_example_runs_and_leaves_a_model_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path / "my-policy")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 10
    namespace: dict[str, Any] = {"__name__": "training_page"}
    exec(compile(block, "docs/training.md", "exec"), namespace)
    assert namespace["trainer"].state.global_step == 1
    assert (tmp_path / "aligned" / "model.safetensors").is_file()
    namespace["trainer"].create_model_card()
    assert "2410.02197" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_the_page_names_every_option_of_its_own_and_every_metric() -> None:
    own = {field.name for field in fields(GPOConfig)} - {field.name for field in fields(KTOConfig)}
    metrics = step_numbers(*torch.tensor([[1.0, 2.0], [1.0, 3.0], [4.0, 5.0], [0.1, 0.2]]))
    wanted = [*own - {"stop_window", "compute_dtype"}, *metrics, "clamped", "prompt_id", "anchor_model"]
    assert [name for name in sorted(wanted) if f"`{name}" not in TEXT] == []
