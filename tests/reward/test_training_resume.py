"""Training a whole reward model in two starts: to the bit, to the end and no further, with other save_steps.

Run: python -m pytest tests/reward/test_training_resume.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.errors import RewardInputError
from reward.trainer import PairTrainer
from reward.training import _check_workers
from reward.training_settings import AdapterSettings
from tests.reward.training_data import same_weights, train
from tests.tiny import save_tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("backbone"))


class Killed(Exception):
    """Stands for a kill in this process."""


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = PairTrainer.compute_loss

    def compute_loss(self: PairTrainer, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return original(self, *arguments, **named)

    monkeypatch.setattr(PairTrainer, "compute_loss", compute_loss)


def train_until_killed(
    monkeypatch: pytest.MonkeyPatch, step: int, folder: Path, backbone: Path, name: str, **changes: Any
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, step)
        train(folder, backbone, name, **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation": 2, "learn_tau": True}, {"adapter": AdapterSettings(rank=2, dropout=0.1)}, {"buffer": 2}],
)
def test_a_training_goes_on_to_the_bit(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = {"save_steps": 2, "evaluate_steps": 3, "max_steps": 10, **changes}
    undisturbed = train(tmp_path, backbone, "undisturbed", **changes)
    train_until_killed(monkeypatch, 5, tmp_path, backbone, "killed", **changes)
    assert (tmp_path / "killed" / "training" / "steps" / "checkpoint-4").is_dir()
    resumed = train(tmp_path, backbone, "killed", **changes)
    assert same_weights(tmp_path / "undisturbed", tmp_path / "killed")
    assert resumed["best_step"] == undisturbed["best_step"]
    lines = [
        [json.loads(line) for line in (tmp_path / name / "training/metrics.jsonl").read_text().splitlines()]
        for name in ("undisturbed", "killed")
    ]
    assert lines[0] == lines[1]


def test_a_training_in_pieces_goes_on_with_as_many_workers_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "whole.json").write_text('{"workers": 2}')
    _check_workers(tmp_path, 2, "zero2")
    _check_workers(tmp_path, 1, "none")
    assert "written by 2 workers, and 1 go on" in caplog.text
    with pytest.raises(RewardInputError, match="written by 2 workers, and 1 go on: sharding is zero2"):
        _check_workers(tmp_path, 1, "zero2")


def test_a_step_checkpoint_that_is_not_whole_does_not_count(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until_killed(monkeypatch, 3, tmp_path, backbone, "killed", save_steps=2)
    whole = tmp_path / "killed/training/steps/checkpoint-2/whole.json"
    whole.unlink()
    train(tmp_path, backbone, "killed", save_steps=2)
    train(tmp_path, backbone, "undisturbed", save_steps=2)
    assert same_weights(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.parametrize("buffer", [0, 2])
def test_a_training_killed_after_its_last_step_does_no_further_one(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    changes = {"save_steps": 2, "max_steps": 4, "buffer": buffer}
    train(tmp_path, backbone, "undisturbed", **changes)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("reward.training._finish", killed)
        train(tmp_path, backbone, "killed", **changes)
    assert (tmp_path / "killed" / "training" / "steps" / "checkpoint-4").is_dir()
    assert train(tmp_path, backbone, "killed", **changes)["steps"] == 4
    assert same_weights(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_training_that_goes_on_saves_as_often_as_it_is_now_told(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until_killed(monkeypatch, 3, tmp_path, backbone, "gpm", save_steps=2)
    train_until_killed(monkeypatch, 8, tmp_path, backbone, "gpm", save_steps=5)
    assert [path.name for path in (tmp_path / "gpm/training/steps").iterdir()] == ["checkpoint-5"]
