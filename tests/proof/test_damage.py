"""The proof by damaged files sees damage that a finished run still holds, and is not ended by it.

Run: python -m pytest tests/proof/test_damage.py
"""

from pathlib import Path

import numpy as np
import pytest

from rollout.records import SAMPLED_FIELDS, BaselineRow, write_baseline, write_shard
from rollout.weights import mark_published
from tests.proof.damage import wrong_end
from tests.proof.outcome import TRACEBACK, differences, results, written_twice
from tests.rollout.test_records import make_row


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_shard(tmp_path / "iterations/001/rollouts/shard-00000.parquet", [make_row()])
    checkpoint = tmp_path / "iterations/001/checkpoint"
    checkpoint.mkdir()
    for name in ("model.safetensors", "config.json"):
        (checkpoint / name).write_bytes(b"whole")
    mark_published(checkpoint, "001")
    return tmp_path


@pytest.mark.parametrize("file", ["rollouts/shard-00000.parquet", "checkpoint/model.safetensors"])
def test_what_cannot_be_read_of_a_finished_run_is_a_fault(run: Path, file: str) -> None:
    expected = results(run)
    assert differences(run, expected) is None
    (run / "iterations/001" / file).write_bytes(b"damaged")
    assert "cannot be read" in (differences(run, expected) or "")


@pytest.mark.parametrize("column", ["score", "target"])
def test_a_number_of_a_shard_that_differs_in_its_last_bit_is_a_fault(run: Path, column: str) -> None:
    shard = run / "iterations/001/rollouts/shard-00000.parquet"
    expected = results(run)
    row = make_row()
    first, *others = getattr(row, column)
    shard.unlink()
    write_shard(shard, [make_row(**{column: [float(np.nextafter(np.float32(first), np.float32(9))), *others]})])
    assert differences(run, expected) == f"finished with another iterations/001/rollouts/{row.prompt_id} {column}"


def test_baseline_answers_that_are_missing_are_a_fault(run: Path) -> None:
    kept = {field: getattr(make_row(), field) for field in SAMPLED_FIELDS}
    shard = run / "iterations/001/baseline/000/shard-00000.parquet"
    write_baseline(shard, [BaselineRow(**kept, embedding=None, gate=None, source="gpm")])
    expected = results(run)
    assert differences(run, expected) is None
    shard.unlink()
    assert "finished with another iterations/001/baseline/000/" in (differences(run, expected) or "")


def test_other_weights_than_those_of_an_undisturbed_run_are_a_fault(run: Path) -> None:
    expected = results(run)
    checkpoint = run / "iterations/001/checkpoint"
    (checkpoint / "model.safetensors").write_bytes(b"other")
    mark_published(checkpoint, "001")
    assert differences(run, expected) == "finished with another iterations/001/checkpoint"


def test_another_number_in_an_evaluation_is_a_fault_and_its_rounding_is_none(run: Path) -> None:
    evaluation = run / "iterations/001/evaluation.json"
    evaluation.write_text('{"win_rate": 0.5}')
    expected = results(run)
    evaluation.write_text('{"win_rate": 0.500001}')
    assert differences(run, expected) is None
    evaluation.write_text('{"win_rate": 0.51}')
    assert differences(run, expected) == "finished with another iterations/001/evaluation.json"


def test_a_shard_that_is_reported_twice_is_told(run: Path) -> None:
    line = '{"event": "shard", "iteration": 1, "shard": 0}\n'
    (run / "journal.jsonl").write_text(line)
    assert written_twice(run) is None
    (run / "journal.jsonl").write_text(2 * line)
    assert written_twice(run) == "reported twice as done: shards 1/0"


def test_a_message_names_the_file_by_its_path_in_the_run() -> None:
    file, place = "iterations/001/checkpoint/config.json", "/tmp/a/run/"
    assert wrong_end(1, f"gpo: {place}{file} is damaged", file) is None
    for said in ("gpo: config.json is damaged", f"gpo: {place}iterations/002/checkpoint/config.json is damaged"):
        assert wrong_end(2, said, file) == "status 2 does not name the file"


def test_a_traceback_and_an_end_by_something_else_are_faults_whatever_is_named() -> None:
    assert wrong_end(1, f"run.json\n{TRACEBACK}", "run.json") == wrong_end(0, TRACEBACK, "run.json") == "a traceback"
    assert wrong_end(None, "run.json", "run.json") == "no end within 900 s"
    assert wrong_end(-9, "run.json", "run.json") == "status -9" and wrong_end(0, "", "run.json") is None
