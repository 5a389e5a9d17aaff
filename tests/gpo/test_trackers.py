"""Trackers get copies of a run's numbers and samples, once, also over a restart; one that fails harms nothing.

Run: python -m pytest tests/gpo/test_trackers.py
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from gpo import trackers
from gpo.errors import UserError
from gpo.journal import RunDirectory
from gpo.trackers import Trackers, check_installed, in_order, markdown_table, numbered_steps, sample_rows
from tests.gpo.report_runs import ATTACK, plant_evaluation, plant_heldout, plant_run
from tests.gpo.small_runs import run_config

# Read by trackio when it is imported; its usual place is in the home folder.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return plant_run(tmp_path / "run")


def follow(directory: RunDirectory, *names: str) -> None:
    with Trackers(run_config(tracking={"report_to": list(names), "project": "test"}), directory):
        pass


def copied(directory: RunDirectory) -> Any:
    return json.loads((directory.root / "trackers/copied.json").read_text())


def test_without_a_tracker_nothing_is_written(directory: RunDirectory) -> None:
    follow(directory)
    assert not (directory.root / "trackers").exists()


def test_steps_are_numbered_over_the_run_and_a_repeated_one_counts_once() -> None:
    lines = [{"iteration": i, "step": s, "steps": 3, "loss": 1.0} for i in (1, 2) for s in (1, 2, 3)]
    again = {"iteration": 2, "step": 2, "steps": 3, "loss": 0.5}
    found = numbered_steps([*lines, again])
    assert [total for total, _ in found] == [1, 2, 3, 4, 5, 6]
    assert found[4][1] == again


def test_an_evaluation_stands_behind_the_last_step_of_its_iteration() -> None:
    steps = [(total, {"iteration": (total + 1) // 2}) for total in (1, 2, 3, 4, 5)]
    first, second = {"iteration": 1}, {"iteration": 2}
    found = [(step, evaluation) for step, _, evaluation in in_order(steps, [first, second])]
    assert found == [(1, None), (2, None), (2, first), (3, None), (4, None), (4, second), (5, None)]
    assert in_order([], [first]) == [(1, {}, first)], "nothing was logged in training"


def test_tensorboard_has_losses_win_rates_and_samples_once(directory: RunDirectory) -> None:
    pytest.importorskip("tensorboard")
    follow(directory, "tensorboard")
    follow(directory, "tensorboard")
    plant_heldout(directory, 3, {f"{16**15 + n:016x}": f"held-out question {n}" for n in range(4)})
    plant_evaluation(directory, 3)
    follow(directory, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory.root / "trackers/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 10))
    rates = events.Scalars("evaluation/gpm/win_rate_vs_start")
    assert [(event.step, round(event.value, 2)) for event in rates] == [(3, 0.56), (6, 0.62), (9, 0.68)]
    texts = events.Tensors("samples/text_summary")
    assert len(texts) == 3 and b"held out 3" in texts[-1].tensor_proto.string_val[0]
    assert copied(directory) == {"tensorboard": {"steps": 9, "evaluation": 3}}


def test_wandb_works_offline(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(directory, "wandb")
    (run,) = (directory.root / "trackers/wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    # wandb's own process writes it, a moment after its run is finished where the machine is busy.
    until = time.monotonic() + 30
    while b"win_rate_vs_start" not in (content := file.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert b"train/loss" in content and b"win_rate_vs_start" in content
    tables = list((run / "files/media/table").glob("samples_*.table.json"))
    rows = [row for table in tables for row in json.loads(table.read_text())["data"]]
    assert {row[0] for row in rows} == {1, 2} and any("held out 2" in row[3] for row in rows)
    assert copied(directory)["wandb"] == {"steps": 6, "evaluation": 2}


def test_trackio_keeps_the_numbers_in_its_data_base(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="no trackio beside our pillow; `make trackio` has it")
    from trackio.sqlite_storage import SQLiteStorage

    follow(directory, "trackio")
    assert copied(directory)["trackio"] == {"steps": 6, "evaluation": 2}
    (name,) = [name for name in SQLiteStorage.get_runs("test") if name.startswith("small-")]
    logs = SQLiteStorage.get_logs("test", name)
    assert [line["train/loss"] for line in logs if "train/loss" in line] == [2.0, 4 / 3, 1.0, 4 / 3, 1.0, 0.8]
    assert [line["step"] for line in logs if "samples" in line] == [3, 6]


def test_a_tracker_that_fails_is_named_and_the_others_go_on(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    made = trackers.make_tracker

    def make(name: str, *rest: Any) -> Any:
        if name == "wandb":
            raise OSError("no route to host")
        return made(name, *rest)

    monkeypatch.setattr(trackers, "make_tracker", make)
    follow(directory, "wandb", "tensorboard")
    assert "tracker wandb: OSError: no route to host" in caplog.text
    assert copied(directory) == {"tensorboard": {"steps": 6, "evaluation": 2}}


def test_a_tracker_that_is_not_installed_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="report_to: wandb, trackio not installed; `pip install wandb trackio`"):
        check_installed(["wandb", "trackio"], "tracking.report_to")


def test_a_cell_of_a_sample_table_is_never_markup(directory: RunDirectory) -> None:
    row = [1, f"{ATTACK} | [link](javascript:1) `code` # head", "a", "b", "stop", 3]
    table = markdown_table([row])
    assert len(table.splitlines()) == 3 and table.splitlines()[2].count("|") == 7
    assert "<" not in table and "](" not in table and "`" not in table
    assert [cells[2] for cells in sample_rows(directory, 1)][0].startswith("held out 0")
