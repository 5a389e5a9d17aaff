"""The proof by damaged files sees damage that a finished run still holds, and is not ended by it.

Run: python -m pytest tests/proof/test_damage.py
"""

from pathlib import Path

import pytest

from rollout.records import write_shard
from rollout.weights import mark_published
from tests.proof.chaos import LAST_STAGE, good
from tests.proof.damage import differences, results
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


def test_other_weights_than_those_of_an_undisturbed_run_are_a_fault(run: Path) -> None:
    expected = results(run)
    checkpoint = run / "iterations/001/checkpoint"
    (checkpoint / "model.safetensors").write_bytes(b"other")
    mark_published(checkpoint, "001")
    assert differences(run, expected) == "finished with another iterations/001/checkpoint"


def test_a_kill_that_the_journal_does_not_name_is_a_failure_where_the_victims_work_was_wanted() -> None:
    case = {"victim": "scorer", "hit": True, "stage": "generate 1", "starts": 1, "status": 0, "lost": ["scorer"]}
    case |= {"same_tokens": True, "shards_once": True, "fault": None}
    assert good(case) and good(case | {"stage": LAST_STAGE, "lost": []}) and good(case | {"victim": "node", "lost": []})
    assert not good(case | {"lost": []}) and not good(case | {"fault": "the node did not come back"})
