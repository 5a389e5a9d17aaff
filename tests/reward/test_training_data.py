"""What a training reads: streams and their counts, and data that do not fit the settings.

Run: python -m pytest tests/reward/test_training_data.py
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reward.errors import RewardInputError
from reward.training import train_pairs
from tests.reward.training_data import cycle, make_task, train, write_rows
from tests.tiny import save_tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("backbone"))


def test_a_stream_gives_whole_steps_and_needs_an_end(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "stream", buffer=4, max_steps=30)
    assert report["steps"] == 30 and report["last_loss"] < report["first_loss"]
    counts = report["data"]["train"]["stream"]
    assert counts["read"] >= 30 * 3 and counts["ties"] == counts["alike_when_cut"] == 0
    with pytest.raises(RewardInputError, match="max_steps"):
        train_pairs(make_task(tmp_path, backbone, "endless", buffer=4))


def test_ties_of_a_stream_are_left_out_and_counted(backbone: Path, tmp_path: Path) -> None:
    task = make_task(tmp_path, backbone, "stream", buffer=2, max_steps=6)
    tie = {"instruction": "Go", "chosen": "same", "rejected": "same"}
    write_rows(tmp_path / "train.jsonl", [*cycle("Choose."), tie])
    report = train_pairs(task)
    assert report is not None
    counts = report["data"]["train"]["stream"]
    assert counts["ties"] >= 2 and counts["read"] > 2 * counts["ties"]


def test_a_metric_that_the_heldout_pairs_do_not_tell_is_refused(backbone: Path, tmp_path: Path) -> None:
    task = make_task(tmp_path, backbone, "gpm", best_metric="cyclic_accuracy")
    write_rows(tmp_path / "heldout.jsonl", [{"instruction": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(RewardInputError, match="best_metric is cyclic_accuracy, and no held-out pair"):
        train_pairs(task)


def test_a_margin_loss_wants_margins_and_no_soft_labels(backbone: Path, tmp_path: Path) -> None:
    task = make_task(tmp_path, backbone, "gpm", loss="margin")
    with pytest.raises(RewardInputError, match="no training pair has a margin"):
        train_pairs(task)
    rows = [*cycle("Choose."), {"instruction": "q", "chosen": "a", "rejected": "b", "target_prob": 0.7, "margin": 1}]
    write_rows(tmp_path / "train.jsonl", rows)
    for buffer in (0, 1):
        with pytest.raises(RewardInputError, match=r"train.jsonl, row 4: target_prob is 0.7"):
            train_pairs(replace(task, stream_buffer=buffer, settings=replace(task.settings, max_steps=9)))
