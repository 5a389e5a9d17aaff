"""Model cards say what a model is made of and what was measured, and stay cards whatever the settings contain.

Run: python -m pytest tests/gpo/test_cards.py
"""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from gpo.cards import code, fence, policy_card, reward_card, write_policy_card
from gpo.errors import StageError
from gpo.hub import push_when_asked
from reward.settings import RewardSettings
from tests.gpo.report_runs import ATTACK, plant_evaluation, plant_run
from tests.gpo.small_runs import run_config


def test_the_card_of_a_policy_has_base_data_judge_numbers_limits_and_settings(tmp_path: Path) -> None:
    config = run_config(tmp_path, iterations=2)
    directory = plant_run(tmp_path / "run")
    write_policy_card(config, directory, 2)
    card = ModelCard.load(directory.checkpoint(2) / "README.md")
    assert card.data.library_name == "transformers" and "gpo" in card.data.tags
    for words in ("iteration 2 of 2", "`policy`", "taste", "62.0% [57.0%, 66.0%]", "3.00 nats KL", "## Limits"):
        assert words in card.text
    settings = card.text.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(settings)["target"]["beta"] == 1.0


def test_text_of_settings_cannot_leave_its_place_in_a_card(tmp_path: Path) -> None:
    config = run_config(tmp_path, name=f"a`|\n# {ATTACK}")
    evaluation = json.loads(plant_run(tmp_path / "run").evaluation(1).read_text())
    text = policy_card(config, evaluation, {f"prompts.train {ATTACK}`": "0" * 64})
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(head) == 1 and head[0].startswith("# `a'/ # <script>")
    assert code("a`b|c\nd") == "`a'b/c d`"
    assert fence("x\n````\ny", "yaml").startswith("`````yaml")


def test_the_card_of_a_reward_model_has_kind_pairs_and_accuracies() -> None:
    settings = {"backbone": "models/base", "train": "a.jsonl", "heldout": "b.jsonl", "tau": None}
    metrics = {"train": {"accuracy": 0.75, "pairs": 100}, "heldout": {"accuracy": 0.675, "pairs": 40}}
    text = reward_card(settings, metrics, RewardSettings.published(6, True))
    assert "# A general preference model on `base`" in text and "from_pretrained" in text
    assert "| held-out pairs | 67.5% | 40 |" in text and "`a.jsonl`" in text
    assert "tau (0.1) is log-odds. Conventions: as published." in text
    scalar = reward_card(settings, metrics, RewardSettings.published(1))
    assert "Bradley-Terry reward model" in scalar and "not card-compatible: head, l2_normalize" in scalar


def test_nothing_is_pushed_unless_asked(tmp_path: Path) -> None:
    push_when_asked(run_config(tmp_path), plant_run(tmp_path / "run"))


def test_a_push_that_cannot_be_done_is_one_message_and_the_run_stays_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = plant_run(tmp_path / "run")
    for iteration in (1, 2):
        plant_evaluation(directory, iteration, ("taste",))
    directory.checkpoint(2).mkdir()
    config = run_config(tmp_path, iterations=2, hub={"push_to": "not a repository"})
    with pytest.raises(StageError, match="is finished, but hub.push_to = not a repository.*\n.*to push"):
        push_when_asked(config, directory)
    assert json.loads((directory.root / "run.json").read_text())["status"] == "finished"
