"""Odd values and settings: the same for a seed in every process, of many kinds, and judged by what is promised.

Run: python -m pytest tests/proof/test_odd_values.py
"""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.settings import read_settings
from tests.e2e.tiny_run import REPOSITORY, environment
from tests.gpo.small_runs import run_values, write_yaml
from tests.proof.odd_settings import all_settings, odd_override, odd_value, set_at
from tests.proof.odd_values import VALUES, drawn

DRAWS = 300
SETTINGS = {setting.key: setting for setting in all_settings()}


def values(seeds: range) -> list[str]:
    return [ascii(drawn(VALUES, Random(seed))) for seed in seeds]


def test_a_seed_gives_the_same_value_whatever_modules_are_loaded() -> None:
    code = "from tests.proof.test_odd_values import values; import gpo.verification; print(values(range(20)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(values(range(20)))


def test_values_are_of_every_kind_and_seldom_the_same() -> None:
    made = [drawn(VALUES, Random(seed)) for seed in range(DRAWS)]
    assert {type(value) for value in made} == {type(None), bool, int, float, str, list, dict}
    assert len(set(map(ascii, made))) > DRAWS / 2
    assert any(isinstance(value, int) and abs(value) > 2**64 for value in made)
    assert any(value != value for value in made), "not a number"


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("iterations", [3, "3", 0], ["three", [], {}, None, True, 1.5, float("nan")]),
        ("train.learning_rate", [1, 1e-6, "1e-6"], ["", [1], None, False, float("inf")]),
        ("policy.dtype", ["auto", "float32"], ["Auto", "float32 ", 32, None]),
        ("prompts.train", ["a.jsonl", ""], [5, None, ["a"]]),
        ("prompts.heldout", [None, "a"], [{}]),
        ("train.lora", [None, {}], ["yes", []]),
        ("rollout.engine.adapters", [True, "yes", 1], [[], None]),
        ("rollout.engine.sleep_level", [1], ["1", True, [1]]),
    ],
)
def test_a_setting_refuses_what_is_not_of_its_kind_and_nothing_else(key: str, good: list[Any], bad: list[Any]) -> None:
    assert [SETTINGS[key].refuses(value) for value in good] == [False] * len(good)
    assert [SETTINGS[key].refuses(value) for value in bad] == [True] * len(bad)


def test_any_setting_with_any_value_gives_settings_or_one_message(tmp_path: Path) -> None:
    refused = 0
    for seed in range(DRAWS):
        draw = Random(seed)
        setting, changed = draw.choice(all_settings()), run_values()
        value = odd_value(setting, draw)
        set_at(changed, setting.path, value)
        path = write_yaml(tmp_path / "case.yaml", yaml.safe_load(yaml.safe_dump(changed)))
        try:
            read_settings(RunConfig, path)
            assert not setting.refuses(value), f"{setting.key} = {value!r}"
        except UserError as error:
            refused += 1
            assert setting.path[0] in str(error), f"{setting.key} = {value!r}: {error}"
    assert DRAWS / 4 < refused < DRAWS - 30


def test_any_word_behind_a_config_gives_settings_or_one_message(tmp_path: Path) -> None:
    path, read = write_yaml(tmp_path / "case.yaml", run_values()), 0
    for seed in range(DRAWS):
        key, text, wrong = odd_override(Random(seed))
        try:
            read_settings(RunConfig, path, [f"{key}={text}"])
            read += 1
            assert not wrong, f"{key}={text}"
        except UserError as error:
            assert str(error)
    assert read > 30
