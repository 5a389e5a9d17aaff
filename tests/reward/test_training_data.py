"""What a training reads: streams and their counts, and data that do not fit the settings.

Run: python -m pytest tests/reward/test_training_data.py
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from reward.errors import RewardInputError
from reward.pair_sources import PairSource, mixed_stream
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


def test_two_data_sets_of_one_name_are_refused(backbone: Path, tmp_path: Path) -> None:
    task = make_task(tmp_path, backbone, "gpm")
    other = write_rows(tmp_path / "other" / "train.jsonl", cycle("Pick."))
    both = (*task.train, PairSource(path=str(other)))
    with pytest.raises(RewardInputError, match=r"both called 'train'.*set name"):
        train_pairs(replace(task, train=both))
    with pytest.raises(RewardInputError, match="both called 'train'"):
        train_pairs(replace(task, heldout=both))
    named = replace(task, train=(*task.train, PairSource(path=str(other), name="more")))
    report = train_pairs(named)
    assert report is not None and report["data"]["train"].keys() == {"train", "more"}


def test_a_stream_draws_its_sources_by_weight(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rows(tmp_path / f"{name}.jsonl", cycle(name))
    sources = [
        PairSource(path=str(tmp_path / f"{name}.jsonl"), weight=weight) for name, weight in (("one", 3), ("two", 1))
    ]
    drawn = [group[0].source for group in islice(mixed_stream(sources, seed=1, buffer=4), 4000)]
    assert 0.72 < drawn.count("one") / len(drawn) < 0.78
    with pytest.raises(RewardInputError, match="for all or none"):
        next(mixed_stream([sources[0], replace(sources[1], weight=None)], seed=1, buffer=4))


@pytest.mark.parametrize(("keep_repeats", "used"), [(False, 3), (True, 6)])
def test_repeated_rows_count_once_unless_they_are_kept(
    backbone: Path, tmp_path: Path, keep_repeats: bool, used: int
) -> None:
    task = make_task(tmp_path, backbone, "gpm")
    write_rows(tmp_path / "train.jsonl", 2 * cycle("Choose."))
    report = train_pairs(replace(task, train=(replace(task.train[0], keep_repeats=keep_repeats),)))
    assert report is not None
    assert report["data"]["train"]["train"]["used"] == used
    assert report["data"]["train"]["train"]["duplicates"] == 6 - used


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
