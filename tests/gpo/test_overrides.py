"""Dotted `key=value` words behind a config: what they reach, and what a mistake is told.

Run: python -m pytest tests/gpo/test_overrides.py
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.settings import read_settings
from tests.gpo.read_runs import read, refusal
from tests.gpo.small_runs import run_values, write_yaml


def test_overrides_reach_every_depth_and_make_sections_that_the_file_lacks(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "iterations=7",
        "train.learning_rate=1e-5",
        "rollout.engine.kv_cache_gib=0.5",
        "preference.judges=[taste, taste]",
        "preference.sources.more=gpm:some/dir",
        "prompts.per_iteration=",
        "target.clamp=null",
        "target.tau=2",
        "prompts.system='Be brief: always.'",
        "train.gradient_checkpointing=true",
        target={"clamp": 5.0},
        prompts={"per_iteration": 5},
    )
    assert config.iterations == 7 and config.train.learning_rate == 1e-5
    assert config.rollout.engine.kv_cache_gib == 0.5 and config.preference.judges == ["taste", "taste"]
    assert config.preference.sources["more"] == "gpm:some/dir" and "taste" in config.preference.sources
    assert config.prompts.system == "Be brief: always."
    assert config.target.clamp is None and config.target.tau == 2 and config.prompts.per_iteration is None
    assert config.train.gradient_checkpointing is True


def test_the_last_of_two_overrides_counts(tmp_path: Path) -> None:
    assert read(tmp_path, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize("override", ["seed", "=5", "", "--seed"])
def test_an_override_without_key_or_value_is_refused_with_an_example(tmp_path: Path, override: str) -> None:
    assert "expected key=value, for example train.learning_rate=1e-5" in refusal(tmp_path, override)


def test_an_override_below_a_plain_value_or_of_bad_yaml_is_refused(tmp_path: Path) -> None:
    assert "name holds 'small', it has no settings below it" in refusal(tmp_path, "name.first=x")
    for value in ("[taste", "2024-13-45", "[" * 10_000):
        assert "the value is not valid YAML" in refusal(tmp_path, f"name={value}")


def test_all_mistaken_overrides_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "iterations", "name.deeper=1")
    assert "'iterations': expected key=value" in message and "name holds" in message


def test_a_section_that_is_left_empty_takes_overrides(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "run.yaml", {**run_values(), "train": None})
    assert read_settings(RunConfig, path, ["train.workers=2"]).train.workers == 2


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)).map("=".join) | st.text(max_size=12), max_size=3))
def test_any_override_gives_settings_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, overrides: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    write_yaml(path, run_values())
    try:
        read_settings(RunConfig, path, overrides)
    except UserError as error:
        assert str(error)
