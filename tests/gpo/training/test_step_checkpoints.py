"""Which checkpoints are whole after a kill.

Run: python -m pytest tests/gpo/training/test_step_checkpoints.py
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer

from gpo.training import step_checkpoints
from gpo.training.learner import _drop_steps
from gpo.training.step_checkpoints import drop_older, drop_torn, last_whole, mark_whole
from tests.gpo.training.small_training import make_rows, make_trainer

ONE_KEPT: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}


def test_the_newest_whole_checkpoint_is_found_by_number_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    assert last_whole(tmp_path) is None and last_whole(tmp_path / "absent") is None
    for step in (2, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_whole(tmp_path) is None
    for step in (2, 10):
        mark_whole(tmp_path / f"checkpoint-{step}")
    assert last_whole(tmp_path) == tmp_path / "checkpoint-10"
    drop_torn(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]


@pytest.mark.parametrize(("elsewhere", "agreed"), [([2, 4], "checkpoint-4"), ([4, 10], "checkpoint-10"), ([], None)])
def test_workers_on_disks_of_their_own_go_on_from_the_newest_step_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: list[int], agreed: str | None
) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        mark_whole(tmp_path / f"checkpoint-{step}")
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*own, elsewhere])
    assert last_whole(tmp_path) == (None if agreed is None else tmp_path / agreed)


def test_a_checkpoint_that_was_held_in_another_way_is_left_alone_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    checkpoint, held = tmp_path / "steps" / "checkpoint-3", "by 2 workers with ZeRO-2"
    assert last_whole(tmp_path / "steps") == checkpoint and last_whole(tmp_path / "steps", held) is None
    mark_whole(checkpoint, held)
    assert last_whole(tmp_path / "steps", held) == checkpoint
    caplog.clear()
    assert last_whole(tmp_path / "steps") == tmp_path / "steps" / "checkpoint-2"
    assert f"{checkpoint} is not gone on from: now it would be held in one piece" in caplog.text
    assert held in caplog.text
    (checkpoint / step_checkpoints.MARKER).write_bytes(b"\xff\xfe")
    assert last_whole(tmp_path / "steps") == tmp_path / "steps" / "checkpoint-2"


def test_what_a_marker_speaks_of_is_on_the_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = whole_checkpoint(tmp_path, 1)
    (checkpoint / step_checkpoints.MARKER).unlink()
    flushed: list[str] = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(Path(f"/proc/self/fd/{file}").readlink().name))
    mark_whole(checkpoint)
    assert {"model.safetensors", "optimizer.pt", tmp_path.name} <= set(flushed[:-1])
    assert step_checkpoints.MARKER in flushed[-1]


def test_a_checkpoint_that_is_written_over_and_not_finished_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_strategy": "steps", "batch_prompts": 6}
    make_trainer(tmp_path, **settings).train()
    assert last_whole(tmp_path / "steps") == tmp_path / "steps" / "checkpoint-1"

    def killed(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(InterruptedError):
        make_trainer(tmp_path, **settings).train()
    assert last_whole(tmp_path / "steps") is None


def whole_checkpoint(folder: Path, step: int) -> Path:
    """A folder with two files and the marker."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt"):
        (checkpoint / name).write_text("a file")
    mark_whole(checkpoint)
    return checkpoint


def kill_inside(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Whoever removes one of these folders is killed when one file is gone, which is not the marker."""
    whole = shutil.rmtree

    def killed(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name not in names:
            return whole(path, *args, **kwargs)
        next(iter(sorted(Path(path).glob("[mo]*")))).unlink()
        raise InterruptedError

    monkeypatch.setattr(shutil, "rmtree", killed)


def test_a_kill_before_the_marker_leaves_the_checkpoint_before_it_even_where_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(checkpoint: Path, held: str) -> None:
        if checkpoint.name == "checkpoint-2":
            raise InterruptedError
        mark_whole(checkpoint, held)

    monkeypatch.setattr(step_checkpoints, "mark_whole", killed)
    with pytest.raises(InterruptedError):
        make_trainer(tmp_path, **ONE_KEPT).train()
    assert last_whole(tmp_path / "steps") == tmp_path / "steps" / "checkpoint-1"
    monkeypatch.undo()
    trainer = make_trainer(tmp_path, **ONE_KEPT)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3 and trainer.args.save_total_limit == 1
    assert [path.name for path in (tmp_path / "steps").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_marker_on_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_checkpoint(tmp_path / "steps", 9)  # of a training before, and the newest by its number
    kill_inside(monkeypatch, "checkpoint-9")
    with pytest.raises(InterruptedError):
        make_trainer(tmp_path, **ONE_KEPT).train()
    assert (tmp_path / "steps" / "checkpoint-9").is_dir()
    assert last_whole(tmp_path / "steps") == tmp_path / "steps" / "checkpoint-1"


def test_a_kill_while_all_but_the_best_go_at_the_end_leaves_the_best_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_is_best = {"metric_for_best_model": "loss", "greater_is_better": False, "learning_rate": 1e-3}
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": Dataset.from_list(make_rows())}
    kill_inside(monkeypatch, "checkpoint-3")
    with pytest.raises(InterruptedError):
        make_trainer(tmp_path, **ONE_KEPT, **first_is_best, **every_step).train()
    assert sorted(path.name for path in (tmp_path / "steps").glob("*-[0-9]")) == ["checkpoint-1", "checkpoint-3"]
    assert last_whole(tmp_path / "steps") == tmp_path / "steps" / "checkpoint-1"


def test_a_kill_while_a_learner_cleans_up_leaves_nothing_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_checkpoint(tmp_path / "steps", 4)
    kill_inside(monkeypatch, "checkpoint-4", "steps")
    with pytest.raises(InterruptedError):
        _drop_steps(tmp_path / "steps")
    assert last_whole(tmp_path / "steps") is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (3, None, [1, 2, 4]),
        (2, None, [2, 4]),
        (2, "checkpoint-1", [1, 4]),
        (1, "checkpoint-1", [1, 4]),
        (1, None, [4]),
        (1, "checkpoint-4", [4]),
    ],
)
def test_the_oldest_go_and_a_torn_one_before_them_but_never_the_best(
    tmp_path: Path, limit: int | None, best: str | None, left: list[int]
) -> None:
    for step in (1, 2, 3, 4):
        checkpoint = whole_checkpoint(tmp_path, step)
        if step == 3:
            (checkpoint / step_checkpoints.MARKER).unlink()
        # The torn one was touched last, as one is whose removal was killed.
        os.utime(checkpoint, (100.0 * step + 900.0 * (step == 3),) * 2)
    drop_older(tmp_path / "checkpoint-4", limit, best and str(tmp_path / best))
    assert sorted(int(path.name.removeprefix("checkpoint-")) for path in tmp_path.iterdir()) == left
