"""Each example runs as its own first lines say, on tiny models.

Run: python -m pytest tests/examples
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from reward import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`policy` and `gpm` in a folder."""
    folder = tmp_path_factory.mktemp("models")
    policy = save_tiny_model(folder / "policy")
    model = GeneralPreferenceModel.from_backbone(policy, RewardSettings.published(4, True), seed=3)
    model.save_pretrained(folder / "gpm", AutoTokenizer.from_pretrained(policy))
    return folder


def run(name: str, *words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_answers_are_scored(models: Path) -> None:
    text = run("score_two_answers.py", models / "gpm")
    score, odds, probability = map(float, re.findall(r"[-+]?\d+\.\d+", text))
    assert odds == pytest.approx(score / 0.1, abs=2e-3)
    assert probability == pytest.approx(100 / (1 + 2.718281828 ** (-odds)), abs=0.1)


def test_a_gpm_holds_a_cycle_that_one_reward_cannot(models: Path) -> None:
    text = run("train_gpm_on_a_cycle.py", models / "policy")
    assert "4 dimensions: 100% of" in text
    assert re.search(r"one reward: (0|33|67)% of", text)


def test_one_iteration_samples_scores_trains_and_writes_a_policy(models: Path, tmp_path: Path) -> None:
    text = run("one_gpo_iteration.py", models / "policy", models / "gpm", tmp_path / "new")
    targets = [float(found) for found in re.findall(r"^\s*([-+]\d+\.\d+) nats", text, re.MULTILINE)]
    assert len(targets) == 16 and abs(sum(targets)) < 0.2, "a skew table's targets average to 0"
    assert (tmp_path / "new" / "model.safetensors").read_bytes() != (models / "policy/model.safetensors").read_bytes()


def test_a_checkpoint_against_itself_wins_about_half(models: Path) -> None:
    text = run("evaluate_two_checkpoints.py", models / "policy", models / "policy", models / "gpm", "--prompts", "4")
    rate = float(re.findall(r"wins (\d+\.\d)%", text)[0])
    assert 20 < rate < 80 and "on 4 prompts" in text


def test_every_example_is_run_here_and_says_how_to_run_it() -> None:
    here = Path(__file__).read_text("utf-8")
    for name in EXAMPLES:
        assert f'run("{name}"' in here, f"{name} is not run"
        assert f"python examples/{name} " in (ROOT / "examples" / name).read_text("utf-8")
