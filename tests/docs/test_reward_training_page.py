"""docs/reward-training.md does what it says: its commands run, and it names every setting's choice and every metric.

Run: python -m pytest tests/docs/test_reward_training_page.py
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from gpo.config.reward import RewardTrainConfig
from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from reward.training_settings import BEST_METRICS
from tests.docs.test_gpm_page import blocks, run_shell
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reward-training.md"
TEXT = PAGE.read_text("utf-8")


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6, True), seed=1)
    model.save_pretrained(tmp_path / "models/quickstart-gpm")
    row = {"prompt": "q", "chosen": "yes", "rejected": "no", "subset": "hep-go"}
    (tmp_path / "bench.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = [block for block in blocks(TEXT) if block.language == "sh"]
    assert len(commands) == 2
    for block in commands:
        run_shell(block, tmp_path)


def test_the_page_names_every_choice_and_metric() -> None:
    fields = ("tune", "head", "loss", "cut_pairs", "sharding")
    wanted = {choice for field in fields for choice in get_args(RewardTrainConfig.model_fields[field].annotation)}
    wanted |= set(BEST_METRICS) | {"tau", "sft_weight", "stream_buffer", "keep_best", "save_steps", "gate_scaling"}
    assert [name for name in sorted(wanted) if name not in TEXT] == []


def test_every_script_that_the_page_launches_by_is_shell() -> None:
    named = set(re.findall(r"`[^`]*?(scripts/[\w/]+\.sh)", TEXT))
    assert {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("reward_*.sh")} <= named
    for script in named:
        assert os.access(ROOT / script, os.X_OK), f"{script} is typed as a command"
        parsed = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, timeout=60)
        assert (parsed.returncode, parsed.stderr) == (0, ""), script


@pytest.mark.parametrize("script", ["reward_single_node.sh", "reward_torchrun.sh"])
def test_a_script_without_a_config_says_how_it_is_used(script: str) -> None:
    asked = subprocess.run([ROOT / "scripts" / script], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 2 and f"scripts/{script} CONFIG" in asked.stderr


def test_every_recipe_that_the_page_names_is_there() -> None:
    for path in (ROOT / "configs").glob("reward_*.yaml"):
        if path.name != "reward_cyclic_chart.yaml":
            assert path.name in TEXT
    for path in (ROOT / "scripts").glob("reward_*.sh"):
        assert f"scripts/{path.name}" in TEXT
