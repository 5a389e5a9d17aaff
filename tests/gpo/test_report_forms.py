"""Damaged files of a run, as its reader meets them: named with the place, or left out, never a crash.

Run: python -m pytest tests/gpo/test_report_forms.py     (more of it: make fuzz)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.files import append_json_line
from gpo.journal import RunDirectory
from gpo.report.forms import Evaluation, Heldout, read_form
from gpo.report.story import tell
from tests.gpo.report_runs import plant_run


def no_rate(values: Any) -> None:
    values["judges"]["gpm"]["vs_start"] = "better"


def no_judges(values: Any) -> None:
    del values["judges"]


def half_an_interval(values: Any) -> None:
    values["judges"]["gpm"]["vs_start"]["ci95"].pop()


def fewer_ends(values: Any) -> None:
    values["prompts"][1]["finish_reason"].pop()


def a_number_for_an_answer(values: Any) -> None:
    values["prompts"][2]["completion"][1] = -1


@pytest.mark.parametrize(
    ("name", "form", "spoil", "place"),
    [
        ("evaluation", Evaluation, no_rate, "judges.gpm.vs_start"),
        ("evaluation", Evaluation, no_judges, "judges"),
        ("evaluation", Evaluation, half_an_interval, "judges.gpm.vs_start.ci95"),
        ("heldout", Heldout, fewer_ends, "prompts.1"),
        ("heldout", Heldout, a_number_for_an_answer, "prompts.2.completion.1"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(
    tmp_path: Path, name: str, form: Any, spoil: Callable[[Any], None], place: str
) -> None:
    path = plant_run(tmp_path).iteration(1) / f"{name}.json"
    values = json.loads(path.read_text("utf-8"))
    assert read_form(path, form) == values
    spoil(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"{name}\.json: damaged at {place} "):
        read_form(path, form)


@pytest.mark.parametrize(
    ("section", "odd", "place"),
    [("train", "x", "config.train"), ("train", {"standardise": ""}, "config.train.standardise"),
     ("preference", {"train_on": {}}, "config.preference.train_on")],
)  # fmt: skip
def test_settings_of_another_kind_are_named(tmp_path: Path, section: str, odd: Any, place: str) -> None:
    directory = plant_run(tmp_path)
    state = json.loads((directory.root / "run.json").read_text("utf-8"))
    state.setdefault("config", {})[section] = odd
    (directory.root / "run.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(UserError, match=rf"run\.json: damaged at {place} "):
        tell(directory)


def test_a_step_without_its_number_and_a_config_that_is_no_text_do_not_hide_the_run(tmp_path: Path) -> None:
    directory = plant_run(tmp_path)
    steps = len(tell(directory)["steps"])
    with directory.metrics.open("a") as metrics:
        metrics.write('{"iteratiom": 1, "step": 9, "loss": 1.0}\n')
    (tmp_path / "config.yaml").write_bytes(b"name: \xe9\n")
    assert len(tell(directory)["steps"]) == steps


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ({"time": 1.0, "event": "stage", "stage": "train", "seconds": 1.0}, "iteration is None"),
        ({"time": 1.0, "event": "shard", "iteration": "1", "shard": 0}, "iteration is '1'"),
        ({"event": "restart"}, "time is None"),
    ],
)
def test_a_whole_line_that_no_run_writes_is_named(tmp_path: Path, line: dict[str, Any], place: str) -> None:
    directory = RunDirectory(tmp_path)
    append_json_line(tmp_path / "journal.jsonl", line)
    with pytest.raises(UserError, match=rf"journal\.jsonl: damaged at .*{place}.*take the line out"):
        directory.journal()
