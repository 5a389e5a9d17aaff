"""From iteration to iteration: what a run's learner starts from, is pulled to, is trained on, and publishes.

Run: python -m pytest tests/gpo/training/test_learner.py
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gpo.files import read_json
from rollout.records import RolloutRow
from rollout.weights import verify_published
from tests.gpo.training.small_iterations import (
    ONE_STEP,
    PROMPTS,
    SAMPLES,
    TRAIN,
    iterate,
    largest_gap,
    learn,
    logps_of,
    make_rollouts,
    make_run,
    published,
    report_of,
    steps_of_iteration,
)
from tests.tiny import save_tiny_model

LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("policy"), layers=1)


# From iteration to iteration


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapter"])
@pytest.mark.parametrize("reference", ["once", "live"])
def test_an_iteration_starts_from_the_one_before_and_has_it_as_reference(
    tmp_path: Path, policy: Path, lora: dict[str, Any] | None, reference: str
) -> None:
    run, (first,) = iterate(tmp_path, policy, lora=lora, reference=reference)
    moved = published(first)
    assert largest_gap(moved, load_file(policy / "model.safetensors")) > 1e-3
    # So small a rate that what comes out is what went in.
    train = {**TRAIN, "lora": lora, "reference": reference, "learning_rate": 1e-12}
    second = learn(make_run(tmp_path, policy={"model": str(policy)}, train=train), 2, make_rollouts(seed=1))
    assert largest_gap(published(second), moved) <= 1e-6
    for iteration in (1, 2):
        assert steps_of_iteration(run, iteration)[0]["log_ratio_max_abs"] == 0.0
    assert steps_of_iteration(run, 1)[-1]["log_ratio_max_abs"] > 0.0


def test_what_is_published_of_an_adapter_is_the_policy_with_the_adapter_in_it(tmp_path: Path, policy: Path) -> None:
    lora = {**LORA, "dropout": 0.5, "modules": ["q_proj", "v_proj"]}
    run, tasks = iterate(tmp_path, policy, 2, lora=lora)
    assert steps_of_iteration(run, 2)[0]["log_ratio_max_abs"] > 0.0, "dropout is on"
    for task in tasks:
        master = Path(task.training) / "master"
        assert {path.name for path in master.glob("*adapter*")} == {"adapter_config.json", "adapter_model.safetensors"}
        verify_published(master)
        assert not (master / "ref").exists(), "the reference beside it is nobody's start"
        told = read_json(master / "adapter_config.json")
        assert (told["r"], told["lora_alpha"], told["lora_dropout"]) == (4, 8.0, 0.5)
        assert sorted(told["target_modules"]) == lora["modules"]
        base = AutoModelForCausalLM.from_pretrained(policy)
        merged = PeftModel.from_pretrained(base, master).merge_and_unload()
        assert largest_gap(published(task), dict(merged.state_dict())) <= 1e-6
    adapters = [load_file(Path(task.training) / "master" / "adapter_model.safetensors") for task in tasks]
    assert largest_gap(*adapters) > 1e-4


def test_master_weights_keep_the_digits_that_a_checkpoint_in_bfloat16_loses(tmp_path: Path, policy: Path) -> None:
    run = make_run(tmp_path, policy={"model": str(policy), "dtype": "bfloat16"}, train=TRAIN)
    first, second = (learn(run, iteration, make_rollouts()) for iteration in (1, 2))
    master = load_file(Path(first.training) / "master" / "model.safetensors")
    assert {value.dtype for value in master.values()} == {torch.float32}
    assert {value.dtype for value in published(first).values()} == {torch.bfloat16}
    assert any(not torch.equal(value.bfloat16().float(), value) for value in master.values())
    assert all(torch.equal(value.bfloat16(), published(first)[name]) for name, value in master.items())
    assert second.start == str(Path(first.training) / "master")
    assert verify_published(Path(second.start)).version.startswith("001-")
    assert steps_of_iteration(run, 2)[0]["log_ratio_max_abs"] == 0.0


# Pull


@pytest.mark.parametrize("every", [0, 1])
def test_a_pull_is_to_the_policy_that_is_the_anchor_of_the_iteration(tmp_path: Path, policy: Path, every: int) -> None:
    """With no targets of its own the second iteration wants the log-ratio of its anchor to what the first published."""
    changes = {**ONE_STEP, "epochs": 2, "pull": 0.5, "anchor_every": every}
    run = make_run(tmp_path, policy={"model": str(policy)}, train=changes)
    rows = make_rollouts()
    first = learn(run, 1, rows)
    second = learn(run, 2, [replace(row, target=[0.0] * SAMPLES) for row in rows])
    start, moved = logps_of(policy, rows), logps_of(Path(first.checkpoint), rows)
    assert report_of(first)["first_loss"] == pytest.approx(mean_square(rows), rel=1e-4), "the anchor is the reference"
    wanted = 0.5 * (start - moved) if every == 0 else torch.zeros_like(start)
    assert (start - moved).abs().max() > 0.1
    assert report_of(second)["first_loss"] == pytest.approx(wanted.square().mean().item(), rel=1e-3, abs=1e-9)


def mean_square(rows: list[RolloutRow]) -> float:
    return torch.tensor([row.target for row in rows]).square().mean().item()


# Rows and targets


@pytest.mark.parametrize(
    ("train", "answers"),
    [
        ({}, SAMPLES),
        ({"select": "best-and-worst"}, 2),
        ({"select": "top-and-bottom", "select_n": 2}, 4),
        ({"select": "top-and-bottom", "select_n": 1, "objective": "dpo"}, 2),
    ],
)
def test_select_decides_how_many_answers_of_a_prompt_are_trained_on(
    tmp_path: Path, policy: Path, train: dict[str, Any], answers: int
) -> None:
    _, (task,) = iterate(tmp_path, policy, **train)
    assert report_of(task)["rows"] == answers * PROMPTS
    assert report_of(task)["steps"] == 2 * PROMPTS // 2


def test_answers_that_are_left_out_or_empty_are_not_trained_on(tmp_path: Path, policy: Path) -> None:
    first, *others = make_rollouts()
    rows = [replace(first, left_out=["", "loop", "", "identical"]), *others]
    rows[1] = replace(rows[1], completion_ids=[[], *rows[1].completion_ids[1:]], left_out=["empty", "", "", ""])
    _, (task,) = iterate(tmp_path, policy, rows=rows)
    assert report_of(task)["rows"] == SAMPLES * PROMPTS - 3


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, mean_square(make_rollouts())),
        ({"length_power": 1.0}, mean_square(make_rollouts())),
        ({"standardise": 1.5}, 1.5**2),
        ({"objective": "dpo", "select": "best-and-worst"}, math.log(2)),
        ({"objective": "ipo", "select": "best-and-worst", "pair_beta": 0.25}, (1 / (2 * 0.25)) ** 2),
    ],
    ids=["regression", "length_power", "standardise", "dpo", "ipo"],
)
def test_the_first_loss_is_that_of_the_objective_at_a_log_ratio_of_0(
    tmp_path: Path, policy: Path, train: dict[str, Any], expected: float
) -> None:
    _, (task,) = iterate(tmp_path, policy, **{**ONE_STEP, **train})
    assert report_of(task)["first_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_clamp_bounds_what_is_left_of_standardised_targets(tmp_path: Path, policy: Path) -> None:
    run = make_run(
        tmp_path,
        policy={"model": str(policy)},
        target={"beta": 1.0, "clamp": 0.5},
        train={**ONE_STEP, "standardise": 1.5},
    )
    targets = torch.tensor([row.target for row in make_rollouts()])
    scaled = targets * (1.5 / targets.square().mean().sqrt())
    expected = scaled.clamp(-0.5, 0.5).square().mean().item()
    assert report_of(learn(run, 1, make_rollouts()))["first_loss"] == pytest.approx(expected, rel=1e-5)
