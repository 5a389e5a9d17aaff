"""Damage to what a run will not compute again is named when it is started again.

Run: python -m pytest tests/gpo/test_verification.py
"""

import shutil
from pathlib import Path

import pytest

from gpo import verification
from gpo.errors import StageError
from gpo.journal import RunDirectory
from gpo.verification import LEFT, hashes_left, verify_finished
from rollout.records import write_shard
from rollout.weights import mark_published
from tests.rollout.test_records import make_row


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Iteration 1 is published, of iteration 2 all answers are there."""
    directory = RunDirectory(tmp_path)
    for iteration in (1, 2):
        write_shard(directory.shard(iteration, 0), [make_row()])
        directory.record("shard", iteration=iteration, shard=0)
        directory.record("stage", stage="generate", iteration=iteration, seconds=1.0)
    for folder in (directory.checkpoint(1), directory.training(1) / "master"):
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_bytes(b"whole")
        mark_published(folder, "001")
    for stage in ("train", "publish"):
        directory.record("stage", stage=stage, iteration=1, seconds=1.0)
    return directory


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"?"
    path.write_bytes(content)


def refusal(run: RunDirectory) -> str:
    with pytest.raises(StageError) as caught:
        verify_finished(run, 2)
    return str(caught.value)


def test_what_is_whole_passes_and_what_is_not_finished_is_not_looked_at(run: RunDirectory) -> None:
    run.checkpoint(2).mkdir()
    verify_finished(run, 2)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "gpo_weights.json"])
def test_damaged_weights_of_an_earlier_iteration_are_named(run: RunDirectory, name: str) -> None:
    damage(run.checkpoint(1) / name)
    said = refusal(run)
    assert str(run.checkpoint(1) / name) in said and "put a copy in its place" in said


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "gpo_weights.json"])
def test_damaged_master_weights_are_named_as_long_as_a_training_is_to_start_from_them(
    run: RunDirectory, name: str
) -> None:
    damage(run.training(1) / "master" / name)
    said = refusal(run)
    assert str(run.training(1) / "master" / name) in said and "put a copy in its place" in said
    verify_finished(run, 1)
    shutil.copytree(run.checkpoint(1), run.checkpoint(2))
    run.record("stage", stage="train", iteration=2, seconds=1.0)
    verify_finished(run, 2)


@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "gone"])
def test_a_checkpoint_is_looked_at_from_its_training_on_and_not_only_once_engines_took_it(
    run: RunDirectory, gone: bool
) -> None:
    shutil.copytree(run.checkpoint(1), run.checkpoint(2))
    run.record("stage", stage="train", iteration=2, seconds=1.0)
    verify_finished(run, 2)
    damage(run.checkpoint(2) / "model.safetensors")
    if gone:
        shutil.rmtree(run.checkpoint(2))
    said = refusal(run)
    assert str(run.checkpoint(2)) in said and "put a copy in its place" in said


def test_master_weights_that_are_gone_are_missed(run: RunDirectory) -> None:
    master = run.training(1) / "master"
    shutil.rmtree(master)
    assert str(master) in refusal(run)


@pytest.mark.parametrize(
    "content", [b"\x00\x93{}", b"[]", b'"001"', b'{"version": 1, "sha256": 2}', b'{"version": "1"}']
)
def test_a_marker_that_is_none_is_named(run: RunDirectory, content: bytes) -> None:
    (run.checkpoint(1) / "gpo_weights.json").write_bytes(content)
    assert str(run.checkpoint(1) / "gpo_weights.json") in refusal(run)


@pytest.mark.parametrize("stage, iteration", [("canary", 0), ("answer", 0), ("train", 2), ("evaluate", 1)])
def test_a_json_file_with_another_digit_is_named(run: RunDirectory, stage: str, iteration: int) -> None:
    paths = [place(run, iteration) for place in LEFT[stage]]
    if stage == "train":
        shutil.copytree(run.checkpoint(1), run.checkpoint(iteration))
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"win_rate": 0.625}')
    left = hashes_left(run, stage, iteration)
    run.record("stage", stage=stage, iteration=iteration, seconds=1.0, left=left)
    verify_finished(run, 2)
    for path in paths:
        whole = path.read_text()
        path.write_text(whole.replace("6", "7"))
        said = refusal(run)
        assert str(path) in said and "journal.jsonl" in said and "put a copy in its place" in said
        path.write_text(whole)
    paths[-1].unlink()
    assert str(paths[-1]) in refusal(run)


def test_a_damaged_shard_may_be_removed_once_its_iteration_is_trained(run: RunDirectory) -> None:
    damage(run.shard(1, 0))
    said = refusal(run)
    assert str(run.shard(1, 0)) in said and "or remove it" in said
    run.shard(1, 0).unlink()
    verify_finished(run, 2)


@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "gone"])
def test_a_shard_that_is_still_to_be_trained_on_may_not_be_lacking(run: RunDirectory, gone: bool) -> None:
    damage(run.shard(2, 0))
    if gone:
        run.shard(2, 0).unlink()
    said = refusal(run)
    assert str(run.shard(2, 0)) in said and "remove it" not in said and "--fresh" in said


def test_what_the_time_does_not_suffice_for_is_named(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verification, "SECONDS", -1.0)
    damage(run.shard(2, 0))
    verify_finished(run, 2)
    assert str(run.shard(2, 0)) in caplog.text and "not verified" in caplog.text
