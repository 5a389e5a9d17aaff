"""Which checkpoints are whole after a kill.

Run: python -m pytest tests/gpo/training/test_step_checkpoints.py
"""

from pathlib import Path

import pytest
from transformers import Trainer

from gpo.training.step_checkpoints import drop_torn, last_whole, mark_whole
from tests.gpo.training.small_training import make_trainer


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
