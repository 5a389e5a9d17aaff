"""A run.json that is JSON and no run's: told at its place, whoever reads it.

Run: python -m pytest tests/gpo/test_run_state.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.journal import dtype_of_run, goes_on, is_finished, open_run
from tests.gpo.small_runs import run_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    open_run(tmp_path, run_config(), fresh=False, versions={}, data={})
    return tmp_path


def change(root: Path, **values: Any) -> None:
    state = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps({**state, **values}))


@pytest.mark.parametrize(
    ("name", "odd"), [("status", None), ("status", 1), ("config", "x"), ("config", []), ("data_sha256", None)]
)
def test_a_state_of_another_form_is_refused_at_its_place(root: Path, name: str, odd: Any) -> None:
    change(root, **{name: odd})
    for read in (is_finished, lambda root: goes_on(root, run_config(), {}), lambda root: dtype_of_run(root, None)):
        with pytest.raises(UserError, match=rf"run\.json: damaged at {name} .*--fresh"):
            read(root)


@pytest.mark.parametrize("policy", [None, "x", {}, {"dtype": []}, {"dtype": "auto"}])
def test_a_state_that_tells_no_type_that_is_computed_in_has_none(root: Path, policy: Any) -> None:
    change(root, config={"policy": policy})
    assert dtype_of_run(root, None) is None


def test_settings_that_differ_are_told_with_the_file_that_has_the_others(root: Path) -> None:
    with pytest.raises(UserError, match=r"other settings, by its run\.json:\n  - seed: 0 -> 1"):
        goes_on(root, run_config(seed=1), {})
