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
from tests.proof.odd_settings import all_settings, odd_override, odd_value, refused_whole, set_at
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
        ("iterations", [3, "3", 1, 10**400], ["three", [], {}, None, True, 1.5, float("nan"), 0, -1, "0", "1.5"]),
        ("train.learning_rate", [1, 1e-6, "1e-6", 5e-324], ["", [1], None, False, float("inf"), 0, -0.0, "-1"]),
        ("train.warmup_ratio", [0, 0.999], [1, -5e-324, 1.0, "1e400"]),
        ("canary.factor", [1.0000000000000002], [1, 0]),
        ("policy.dtype", ["auto", "float32"], ["Auto", "float32 ", 32, None]),
        ("prompts.train", ["a.jsonl", ""], [5, None, ["a"]]),
        ("prompts.heldout", [None, "a"], [{}]),
        ("train.lora", [None, {}, {"rank": 1}], ["yes", [], {"rank": 0}, {"ranks": 1}]),
        ("train.lora.modules", ["all-linear", ["q_proj"]], ["all", [1], None]),
        ("rollout.engine.adapters", [True, "yes", 1, "OFF"], [[], None, 2, 0.5, "maybe"]),
        ("rollout.engine.sleep_level", [1], ["1", True, [1], 3]),
        ("rollout.leave_out", [[], ["loop"]], ["loop", ["loops"], [["loop"]]]),
        ("preference.sources", [{}, {"a": "b"}], [[], {"a": 1}, {"a": None}]),
        ("policy", [{"model": "a"}, None], [{}, {"dtype": "auto"}, {"model": "a", "models": "b"}]),
    ],
)
def test_a_setting_refuses_what_is_not_of_its_kind_and_nothing_else(key: str, good: list[Any], bad: list[Any]) -> None:
    assert [SETTINGS[key].refuses(value) for value in good] == [False] * len(good)
    assert [SETTINGS[key].refuses(value) for value in bad] == [True] * len(bad)


def test_a_whole_config_is_refused_for_a_setting_a_section_and_a_key_anywhere_in_it() -> None:
    assert not refused_whole(run_values())
    for path, value in [(("train", "epochs"), 0), (("train", "epoch"), 1), (("policy",), {}), (("x",), 1)]:
        values = run_values()
        set_at(values, path, value)
        assert refused_whole(values), path
    assert refused_whole({}) and refused_whole([])


def test_values_about_a_bound_are_drawn() -> None:
    made = [odd_value(SETTINGS["train.warmup_ratio"], Random(seed)) for seed in range(DRAWS)]
    assert {0, 1, -5e-324} <= {value for value in made if isinstance(value, int | float)}


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
