"""docs/reward-training.md does what it says: its commands run, and it names every setting's choice and every metric.

Run: python -m pytest tests/docs/test_reward_training_page.py
"""

import json
from pathlib import Path
from typing import get_args

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


def test_every_recipe_that_the_page_names_is_there() -> None:
    for path in (ROOT / "configs").glob("reward_*.yaml"):
        if path.name != "reward_cyclic_chart.yaml":
            assert path.name in TEXT
    for path in (ROOT / "scripts").glob("reward_*.sh"):
        assert f"scripts/{path.name}" in TEXT
