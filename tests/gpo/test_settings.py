"""Reading settings: what a mistake is told, overrides, and the configs of this repository.

Run: python -m pytest tests/gpo/test_settings.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpo.config import RunConfig, changed_identity, identity_hash, identity_values
from gpo.config.cyclic import CyclicConfig
from gpo.errors import UserError
from gpo.rewards.training import RewardTrainConfig
from gpo.settings import Settings, dump_yaml, read_settings
from tests.gpo.read_runs import read, refusal
from tests.gpo.small_runs import run_config, run_values, write_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
KIND_BY_KEY: dict[str, type[Settings]] = {"policy": RunConfig, "cycles": CyclicConfig, "backbone": RewardTrainConfig}


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    assert "iteratons: unknown key; did you mean 'iterations'?" in refusal(tmp_path, iteratons=3)
    message = refusal(tmp_path, train={"learning_rat": 1e-5})
    assert "train.learning_rat: unknown key; did you mean 'learning_rate'?" in message
    message = refusal(tmp_path, "rollout.engine.kv_cache=2")
    assert "rollout.engine.kv_cache: unknown key; did you mean 'kv_cache_gib'?" in message


def test_an_unknown_key_without_a_near_name_is_told_all_that_are_known(tmp_path: Path) -> None:
    message = refusal(tmp_path, target={"zzzzzz": 1})
    assert "target.zzzzzz: unknown key; known here: beta, clamp, exclude_self" in message


def test_all_faults_are_told_at_once_with_field_value_and_expectation(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        iterations=0,
        rollout={"samples": 1, "temperature": "hot"},
        target={"beta": -1},
        prompts={"split": "some"},
        polcy={},
    )
    assert "run.yaml: 6 fault(s)" in message
    lines = message.splitlines()
    assert len(lines) == 7
    for start, expected in [
        ("iterations = 0:", "greater than or equal to 1"),
        ("rollout.samples = 1:", "greater than or equal to 2"),
        ("rollout.temperature = 'hot':", "valid number"),
        ("target.beta = -1:", "greater than 0"),
        ("prompts.split = 'some':", "'disjoint' or 'whole'"),
        ("polcy: unknown key;", "'policy'"),
    ]:
        assert any(line.startswith(f"  - {start}") and expected in line for line in lines), (start, message)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    values = run_values()
    del values["target"]
    del values["policy"]["model"]
    with pytest.raises(UserError) as caught:
        read_settings(RunConfig, write_yaml(tmp_path / "run.yaml", values))
    assert "target: missing; it has no default" in str(caught.value)
    assert "policy.model: missing; it has no default" in str(caught.value)


def test_beta_has_no_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="target.beta: missing"):
        read_settings(RunConfig, write_yaml(tmp_path / "run.yaml", {**run_values(), "target": {}}))


def test_fewer_than_two_samples_are_refused(tmp_path: Path) -> None:
    assert "rollout.samples = 1" in refusal(tmp_path, "rollout.samples=1")
    assert read(tmp_path, "rollout.samples=2").rollout.samples == 2


@pytest.mark.parametrize("method", ["gpo-reference", "sppo-reference"])
@pytest.mark.parametrize("log_z", ["mean", "logmeanexp"])
def test_a_reference_method_never_centres(tmp_path: Path, method: str, log_z: str) -> None:
    message = refusal(tmp_path, f"target.method={method}", f"target.log_z={log_z}")
    assert f"target.log_z = '{log_z}'" in message and "use zero" in message
    assert read(tmp_path, f"target.method={method}").target.log_z_for("answers") == "zero"


def test_every_name_must_be_among_the_sources(tmp_path: Path) -> None:
    assert "'oracle' is not among preference.sources (taste)" in refusal(tmp_path, "preference.judges=[oracle]")
    assert "'oracle' is not among preference.sources (taste)" in refusal(tmp_path, "preference.train_on=oracle")


@pytest.mark.parametrize("spec", ["models/gpm", "gpm:", "openai:gpt", ":", ""])
def test_a_source_of_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path, spec: str) -> None:
    message = refusal(tmp_path, preference={"sources": {"taste": spec}})
    assert f"preference.sources.taste = {spec!r}: expected gpm:DIR, python:FILE.py:FUNCTION or url:http" in message


def test_the_judge_is_the_source_trained_on_unless_named(tmp_path: Path) -> None:
    assert read(tmp_path).preference.judge_names() == ["taste"]
    sources = {"taste": "python:a.py:f", "other": "gpm:dir"}
    both = read(tmp_path, preference={"sources": sources, "judges": ["other", "taste", "other"]})
    assert both.preference.judge_names() == ["other", "taste"]


@pytest.mark.parametrize("override", ["iterations=true", "target.beta=yes", "rollout.samples=false"])
def test_true_is_no_number(tmp_path: Path, override: str) -> None:
    assert "this setting is no switch" in refusal(tmp_path, override)


@pytest.mark.parametrize("text", ["half \ud800", "zero \0"])
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("name", lambda text: {"name": text}),
        ("prompts.train", lambda text: {"prompts": {"train": text}}),
        ("preference.judges", lambda text: {"preference": {"judges": ["taste", text]}}),
        ("preference.sources", lambda text: {"preference": {"sources": {"taste": text}}}),
        ("preference.sources", lambda text: {"preference": {"sources": {text: "python:a.py:prefer"}}}),
    ],
)
def test_text_that_no_file_can_hold_is_refused_wherever_it_stands(
    tmp_path: Path, field: str, change: Callable[[str], dict[str, Any]], text: str
) -> None:
    message = refusal(tmp_path, **change(text))
    assert f"- {field}" in message and f"{text!r} has half a surrogate pair or a character 0 in it" in message


@pytest.mark.parametrize("seed", [2**31, -1])
def test_a_seed_that_numpy_would_refuse_in_a_learner_is_refused_at_once(tmp_path: Path, seed: int) -> None:
    assert f"seed = {seed}: " in refusal(tmp_path, seed=seed) and run_config(seed=2**31 - 1).seed == 2**31 - 1


def test_settings_that_disagree_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, "target.exclude_self=true", "baseline.kind=initial", "evaluation.choose_by=nobody",
        "rollout.engine.weight_transfer=nccl",
    )  # fmt: skip
    for word in ("target.exclude_self", "evaluation.choose_by = 'nobody'", "cluster.shape = 'split'"):
        assert word in message


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
@pytest.mark.parametrize("option", ["train.pull=0.5", "train.length_power=1", "train.standardise=2", "target.clamp=5"])
def test_what_shapes_targets_is_refused_for_an_objective_without_targets(
    tmp_path: Path, objective: str, option: str
) -> None:
    pairs = [f"train.objective={objective}", "train.select=best-and-worst"]
    message = refusal(tmp_path, *pairs, option)
    assert f"train.objective = '{objective}'" in message and f"{option.partition('=')[0]} = " in message
    assert "would do nothing; leave" in message
    assert read(tmp_path, *pairs).train.objective == objective


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_float16_is_refused_where_deepspeed_would_round_the_master_weights_to_it(tmp_path: Path, sharding: str) -> None:
    several = ["train.workers=2", f"train.sharding={sharding}"]
    message = refusal(tmp_path, "policy.dtype=float16", *several)
    assert f"policy.dtype = 'float16' with train.sharding = '{sharding}'" in message
    assert "set policy.dtype=bfloat16 (or float32), or train.sharding=none" in message
    assert read(tmp_path, "policy.dtype=bfloat16", *several).train.sharding == sharding
    alone = read(tmp_path, "policy.dtype=float16", f"train.sharding={sharding}")
    assert alone.train.workers == 1, "a single worker shards nothing"


keys = st.sampled_from(["name", "policy", "model", "train", "rollout", "preference", "sources"]) | st.text(max_size=3)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | plain, inner, max_size=3)
)


@given(anything)
def test_any_yaml_gives_settings_or_one_message(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    path = write_yaml(tmp_path_factory.getbasetemp() / "any.yaml", values)
    with pytest.raises(UserError, match=r"any\.yaml"):
        read_settings(RunConfig, path)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x", "a: !!python/object:os.system {}", "? [1]: 2\n: {"])
def test_bad_yaml_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml: not valid YAML"):
        read_settings(RunConfig, path)


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a", "list"), ("hello", "str"), ("5", "int")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"expected a mapping of settings, found {kind}"):
        read_settings(RunConfig, path)


def test_a_file_that_is_missing_a_folder_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(UserError, match="cannot read the config.*expected a YAML file"):
            read_settings(RunConfig, path)


def test_settings_are_frozen_and_refuse_numbers_that_are_none() -> None:
    config = run_config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            run_config(target={"beta": value})


def test_the_dump_is_complete_and_reads_back_the_same(tmp_path: Path) -> None:
    config = run_config(prompts={"system": "Sei kurz – bitte.\nImmer."}, name="ünïcode")
    path = tmp_path / "dump.yaml"
    path.write_text(dump_yaml(config), "utf-8")
    assert read_settings(RunConfig, path) == config
    assert set(yaml.safe_load(dump_yaml(config))) == set(RunConfig.model_fields)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_of_the_repository_parses(path: Path) -> None:
    values = yaml.safe_load(path.read_text("utf-8"))
    kinds = [kind for key, kind in KIND_BY_KEY.items() if key in values]
    if not kinds:
        pytest.skip("settings of another program (DeepSpeed, accelerate)")
    read_settings(kinds[0], path)


def test_the_repository_has_configs_of_both_kinds() -> None:
    keys = {key for path in CONFIGS for key in KIND_BY_KEY if key in yaml.safe_load(path.read_text("utf-8"))}
    assert keys == set(KIND_BY_KEY)


def all_settings(kind: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for below in kind.__subclasses__():
        if below.__module__.startswith("gpo."):
            yield below
            yield from all_settings(below)


@pytest.mark.parametrize("kind", list(all_settings()), ids=lambda kind: kind.__name__)
def test_every_field_is_documented_by_its_own_text_or_by_that_of_its_section(kind: type[Settings]) -> None:
    assert kind.__doc__
    for name, field in kind.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        assert field.description or (is_section and field.annotation.__doc__), f"{kind.__name__}.{name} says nothing"


PLACED: list[dict[str, Any]] = [
    {"cluster": {"samplers": 3, "shape": "split"}},
    {"train": {"workers": 2, "save_steps": 5}},
    {"rollout": {"engine": {"compile": True}}},
    {"preference": {"batch_tokens": 16}},
]


@pytest.mark.parametrize("change", PLACED)
def test_placement_is_no_part_of_the_identity(change: dict[str, Any]) -> None:
    base, moved = run_config(), run_config(**change)
    assert base != moved
    assert identity_hash(base) == identity_hash(moved)
    assert changed_identity(identity_values(base), identity_values(moved)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"target": {"beta": 2.0}}, "target.beta: 1.0 -> 2.0"),
        ({"prompts": {"system": "s"}}, "prompts.system: None -> 's'"),
        ({"train": {"learning_rate": 1.0}}, "train.learning_rate: 5e-07 -> 1.0"),
    ],
)
def test_any_other_value_is_part_of_it_and_listed_when_it_changes(change: dict[str, Any], line: str) -> None:
    base, other = run_config(), run_config(**change)
    assert identity_hash(base) != identity_hash(other)
    assert changed_identity(identity_values(base), identity_values(other)) == [line]


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: one\ntrain:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(UserError, match="'epochs' stands twice(.|\n)*line 4"):
        read_settings(RunConfig, path)
