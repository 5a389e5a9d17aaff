"""Which checkpoints are whole after a kill.

Run: python -m pytest tests/gpo/training/test_step_checkpoints.py
"""

from pathlib import Path

from gpo.training.step_checkpoints import drop_torn, last_whole, mark_whole


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
