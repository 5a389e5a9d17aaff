"""Estimates before a run, and what is told when a machine is too small for it.

Run: python -m pytest tests/gpo/planning/test_plan.py
"""

import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.modelfiles import parameter_count, read_model_config, tensor_shapes
from gpo.planning.kv_cache import kv_bytes_a_token, kv_cache
from gpo.planning.memory import GIB, _container_gib, available_memory_gib
from gpo.planning.plan import Memory, Plan, check_fits, make_plan, with_checkpointing
from tests.gpo.small_runs import run_config
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_tiny_model(folder / "policy", hidden_size=512, intermediate_size=8192, layers=2)
    return folder


def config(folder: Path, **changes: Any) -> RunConfig:
    """With a KV cache of one size, unless the changes say otherwise."""
    rollout = {"engine": {"kv_cache_gib": 1.0}, **changes.pop("rollout", {})}
    return run_config(folder, rollout=rollout, **changes)


def test_a_plan_counts_the_parameters_of_the_policy(folder: Path) -> None:
    assert make_plan(config(folder)).parameters == parameter_count(folder / "policy")


def test_the_peak_is_the_sum_of_all_processes_but_the_forwards_model_which_no_learner_meets(folder: Path) -> None:
    plan = make_plan(config(folder))
    assert set(plan.memory_gib) == {"driver and Ray", "samplers", "scorers", "learner", "forward"}
    (forward,) = (memory for memory in plan.processes if memory.process == "forward")
    resting = forward.weights + forward.activations
    assert plan.peak_gib == pytest.approx(sum(plan.memory_gib.values()) - resting) and resting > 0
    assert all(value > 0 for value in plan.memory_gib.values()) and plan.disk_gib > 0


@pytest.mark.parametrize(
    ("change", "process"),
    [
        ({"cluster": {"samplers": 2}}, "samplers"),
        ({"rollout": {"engine": {"kv_cache_gib": 3.0}}}, "samplers"),
        ({"cluster": {"scorers": 2}}, "scorers"),
        ({"train": {"workers": 2}}, "learner"),
        ({"train": {"optimizer": "adamw"}}, "learner"),
        ({"train": {"batch_prompts": 64}}, "learner"),
        ({"rollout": {"samples": 64}}, "learner"),
        ({"rollout": {"max_tokens": 4096}}, "learner"),
    ],
)
def test_what_needs_more_memory_is_planned_with_more_for_that_process_alone(
    folder: Path, change: dict[str, Any], process: str
) -> None:
    base, more = make_plan(config(folder)).memory_gib, make_plan(config(folder, **change)).memory_gib
    assert more[process] > base[process]
    assert {**more, process: 0} == {**base, process: 0}


def test_gradient_checkpointing_needs_less_and_a_reward_model_needs_its_weights(folder: Path) -> None:
    long = {"rollout": {"max_tokens": 4096}}
    spared = make_plan(config(folder, train={"gradient_checkpointing": True}, **long))
    assert spared.memory_gib["learner"] < make_plan(config(folder, **long)).memory_gib["learner"]
    preference = {"sources": {"model": f"gpm:{folder / 'policy'}"}, "train_on": "model"}
    for dtype, width in (("bfloat16", 2), ("float32", 4)):
        policy = {"model": str(folder / "policy"), "dtype": dtype}
        judged = make_plan(config(folder, preference=preference, policy=policy))
        weights = judged.memory_gib["scorers"] - make_plan(config(folder, policy=policy)).memory_gib["scorers"]
        assert weights == pytest.approx(width * parameter_count(folder / "policy") / GIB, abs=0.011)


def test_gradient_checkpointing_comes_by_need_and_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(notes: list[str], **more: Any) -> bool | str:
        return with_checkpointing(config(folder, **more), notes).train.gradient_checkpointing

    peak = make_plan(config(folder)).peak_gib
    monkeypatch.setattr("gpo.planning.plan.available_memory_gib", lambda: peak + 0.1)
    notes: list[str] = []
    assert resolved(notes) is False and notes == []
    monkeypatch.setattr("gpo.planning.plan.available_memory_gib", lambda: peak - 0.1)
    assert resolved(notes) is True and f"{peak:.1f} GiB otherwise and {peak - 0.1:.1f} GiB are free" in notes[0]
    assert resolved(notes, train={"gradient_checkpointing": False}) is False, "as asked"
    assert resolved(notes, cluster={"address": "10.0.0.1:6379"}) is False, "the learner has another machine's memory"
    assert len(notes) == 1


def learner(folder: Path, dtype: str = "bfloat16", **train: Any) -> Memory:
    policy = {"model": str(folder / "policy"), "dtype": dtype}
    return make_plan(config(folder, policy=policy, train=train)).processes[2]


def test_an_adapter_needs_gradients_and_optimizer_for_itself_alone(folder: Path) -> None:
    shapes = [shape for name, shape in tensor_shapes(folder / "policy").items() if "down_proj" in name]
    adapter = sum(4 * (shape[0] + shape[1]) for shape in shapes)
    found = learner(folder, lora={"rank": 4, "modules": ["down_proj"]})
    assert found.gradients == pytest.approx(adapter * 4 / GIB) and found.optimizer == pytest.approx(found.gradients)
    assert found.weights == learner(folder).weights
    everywhere = learner(folder, lora={"rank": 4})
    assert found.gradients < everywhere.gradients < learner(folder).gradients / 10


def test_every_further_model_of_a_learner_is_counted(folder: Path) -> None:
    master = parameter_count(folder / "policy") * 4 / GIB
    plain = learner(folder).weights
    assert learner(folder, reference="live").weights == pytest.approx(plain + master)
    assert learner(folder, pull=0.5).weights == pytest.approx(plain + master)
    assert learner(folder, reference="live", lora={"rank": 4}).weights == pytest.approx(plain)
    assert plain == pytest.approx(1.5 * master)
    assert learner(folder, dtype="float32").weights == pytest.approx(master), "nothing is cast"


@pytest.mark.parametrize(("sharding", "pieces"), [("zero1", (1, 1, 4)), ("zero2", (1, 4, 4)), ("zero3", (4, 4, 4))])
def test_sharding_cuts_what_it_says(folder: Path, sharding: str, pieces: tuple[int, int, int]) -> None:
    master = parameter_count(folder / "policy") * 4 / GIB
    found = learner(folder, workers=4, sharding=sharding)
    cast, engine = master / 2, master / 4
    assert found.weights == pytest.approx(master / pieces[0] + cast + engine)
    assert found.gradients == pytest.approx(master / pieces[1]) and found.optimizer == pytest.approx(master / pieces[2])


def test_plain_workers_have_the_gradients_twice(folder: Path) -> None:
    assert learner(folder, workers=2).gradients == pytest.approx(2 * learner(folder).gradients)


def test_more_iterations_and_step_checkpoints_need_more_disk(folder: Path) -> None:
    base = make_plan(config(folder)).disk_gib
    assert make_plan(config(folder, iterations=20)).disk_gib > base
    assert make_plan(config(folder, train={"save_steps": 1})).disk_gib > base


@pytest.mark.parametrize("values", [{}, {"num_attention_heads": "4", "hidden_size": 64, "num_hidden_layers": 2}])
def test_a_config_that_does_not_say_how_large_the_cache_gets_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="config.json does not say how large.*kv_cache_gib"):
        kv_bytes_a_token(values, "float32")


def test_the_cache_has_room_for_all_sequences_within_a_share_of_the_memory_and_for_one_in_any_case(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = (1024 + 512) * kv_bytes_a_token(read_model_config(folder / "policy"), "float32") / GIB
    policy = {"model": str(folder / "policy"), "dtype": "float32"}

    def size(free_gib: float, **engine: Any) -> Any:
        monkeypatch.setenv("GPO_MEMORY_GIB", str(free_gib))
        cluster = {"samplers": 2}
        return kv_cache(config(folder, policy=policy, cluster=cluster, rollout={"max_tokens": 512, "engine": engine}))

    free = available_memory_gib()
    assert size(free, max_sequences=2).gib == pytest.approx(2 * one)
    shared = size(free, max_sequences=100_000)
    assert shared.gib == pytest.approx(free / 16 / 2, rel=0.1) and "16th of the free memory" in shared.reason
    assert size(0.01 * one).gib == pytest.approx(one)
    assert size(free, kv_cache_gib=0.3).gib == 0.3


def test_a_run_that_fits_is_let_through(tmp_path: Path) -> None:
    check_fits(Plan(1, {"learner": 0.01}, 0.001), tmp_path / "runs" / "not" / "there" / "yet")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_told_with_both_numbers_the_processes_and_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPO_MEMORY_GIB", "0.5")
    with pytest.raises(UserError) as caught:
        check_fits(Plan(1, {"samplers": 1.5, "learner": 2.0}, 0.001), tmp_path)
    message = str(caught.value)
    assert "about 3.5 GiB" in message and "0.5 GiB are free" in message
    assert "samplers 1.5, learner 2.0" in message and "train.batch_tokens" in message


def test_too_little_disk_is_told_with_the_directory(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free / GIB
    with pytest.raises(UserError) as caught:
        check_fits(Plan(1, {"learner": 0.01}, free + 100), tmp_path / "runs" / "new")
    message = str(caught.value)
    assert str(tmp_path / "runs" / "new") in message and "--run-dir" in message


def test_the_environment_lowers_the_memory_and_never_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPO_MEMORY_GIB", raising=False)
    assert 0 < available_memory_gib() <= psutil.virtual_memory().total / GIB
    monkeypatch.setenv("GPO_MEMORY_GIB", "0.25")
    assert available_memory_gib() == 0.25
    monkeypatch.setenv("GPO_MEMORY_GIB", "1e9")
    assert available_memory_gib() <= psutil.virtual_memory().total / GIB


@pytest.mark.parametrize("value", ["much", "4 GB", "nan", "-1"])
def test_an_unreadable_number_in_the_environment_is_the_callers_mistake(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPO_MEMORY_GIB", value)
    with pytest.raises(UserError, match=f"GPO_MEMORY_GIB = '{value}': expected a number of GiB"):
        available_memory_gib()


def test_a_containers_limit_counts_and_its_droppable_file_cache_does_not(tmp_path: Path) -> None:
    assert _container_gib(tmp_path) == float("inf")
    for name, text in {"memory.max": "max\n", "memory.current": f"{3 * GIB}\n", "memory.stat": ""}.items():
        (tmp_path / name).write_text(text)
    assert _container_gib(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {GIB}\nactive_file 9\n")
    assert _container_gib(tmp_path) == 6.0
