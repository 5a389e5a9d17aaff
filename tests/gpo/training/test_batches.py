"""Steps of whole prompts: every row once an epoch, in a plan that seed and epoch alone decide.

Run: python -m pytest tests/gpo/training/test_batches.py
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from gpo.training.batches import StepLoader, StepPlan, Steps
from gpo.training.layout import Layout
from tests.gpo.training.small_training import make_rows

PLAN = StepPlan(layout="shared", batch_tokens=64, step_prompts=2)


def table(prompts: int = 7, samples: int = 3, seed: int = 0) -> Dataset:
    rows = make_rows(prompts, samples, seed)
    return Dataset.from_list([{**row, "row": number} for number, row in enumerate(rows)])


def rows_of(item: dict[str, Any]) -> list[int]:
    return [row for part in item["parts"] if "idle" not in part for row in part["row"].tolist()]


def epoch_of(steps: Steps, epoch: int) -> list[list[int]]:
    return [rows_of(steps[epoch, place]) for place in range(len(steps))]


def test_steps_hold_whole_prompts_and_every_row_once_an_epoch() -> None:
    rows = table()
    steps = Steps(rows, PLAN)
    assert len(steps) == 4
    epochs = [epoch_of(steps, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(row for step in epoch for row in step) == list(range(21))
        for step in epoch:
            names = [rows[row]["prompt_id"] for row in step]
            assert all(names.count(name) == 3 for name in names) and len(set(names)) <= 2
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_plan_repeats_for_the_same_seed_and_not_for_another() -> None:
    plans = [epoch_of(Steps(table(), replace(PLAN, seed=seed)), 0) for seed in (3, 3, 4)]
    assert plans[0] == plans[1] != plans[2]


def test_prompts_without_an_id_are_kept_together_by_their_token_ids() -> None:
    rows = table().remove_columns("prompt_id")
    for step in epoch_of(Steps(rows, PLAN), 0):
        ids = [tuple(rows[row]["prompt_ids"]) for row in step]
        assert all(ids.count(one) == 3 for one in ids)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_workers_and_passes_change_who_computes_a_row_and_never_the_rows_of_a_step(
    prompts: int, step_prompts: int, world: int, passes: int, epoch: int
) -> None:
    rows = table(prompts, samples=2)
    alone = epoch_of(Steps(rows, replace(PLAN, step_prompts=step_prompts)), epoch)
    plan = replace(PLAN, step_prompts=step_prompts, world=world, passes=passes)
    workers = [Steps(rows, replace(plan, rank=rank)) for rank in range(world)]
    for step, expected in enumerate(alone):
        items = [[steps[epoch, step * passes + number] for steps in workers] for number in range(passes)]
        found = [row for group in items for item in group for row in rows_of(item)]
        assert sorted(found) == sorted(expected)
        for group in items:
            assert len({len(item["parts"]) for item in group}) == 1 and group[0]["parts"]
            assert all(item["rows"] == len(expected) for item in group)
            everywhere = sorted(row for item in group for row in rows_of(item))
            assert all(sorted(item["row"].tolist()) == everywhere for item in group)


def computed(item: dict[str, Any]) -> int:
    """Tokens that a worker computes for a pass."""
    return sum(part["input_ids"].numel() for part in item["parts"] if "idle" not in part)


@given(
    st.integers(1, 14), st.integers(2, 4), st.integers(1, 2), st.sampled_from(["shared", "packed"]), st.integers(0, 999)
)
def test_no_prompt_could_go_to_another_worker_or_pass_and_leave_both_with_fewer_tokens(
    prompts: int, world: int, passes: int, layout: Layout, seed: int
) -> None:
    """So two shares of a step differ by the smallest prompt of the larger one at most."""
    rows = table(prompts, samples=2, seed=seed)
    plan = replace(PLAN, layout=layout, step_prompts=prompts, world=world, passes=passes, batch_tokens=10_000)
    items = [Steps(rows, replace(plan, rank=rank))[0, number] for rank in range(world) for number in range(passes)]
    loads = [computed(item) for item in items]
    for item, load in zip(items, loads, strict=True):
        own: dict[str, list[int]] = {}
        for row in rows_of(item):
            own.setdefault(rows[row]["prompt_id"], []).append(row)
        tokens = [
            len(rows[group[0]]["prompt_ids"]) * (1 if layout == "shared" else len(group))
            + sum(len(rows[row]["completion_ids"]) for row in group)
            for group in own.values()
        ]
        assert sum(tokens) == load
        assert not tokens or load - min(tokens) <= min(loads)


def test_a_worker_with_nothing_to_do_gets_an_idle_part() -> None:
    steps = Steps(table(prompts=1), replace(PLAN, world=2, rank=1))
    (item,) = [steps[0, 0]]
    assert [part["idle"] for part in item["parts"]] == [True] * len(item["parts"]) and item["rows"] == 3


def test_parts_carry_the_float_columns_of_their_rows_in_order() -> None:
    rows = table().add_column("ref_logps", [float(-number) for number in range(21)])
    for part in Steps(rows, PLAN)[0, 0]["parts"]:
        assert part["ref_logps"].tolist() == [-float(row) for row in part["row"]]
        assert torch.equal(part["target"], torch.tensor([rows[row]["target"] for row in part["row"].tolist()]))


def test_a_loader_hands_the_epoch_on_and_gives_items_as_they_are() -> None:
    steps = Steps(table(), PLAN)
    loader = StepLoader(steps)
    loader.set_epoch(2)
    assert [rows_of(item) for item in loader] == epoch_of(steps, 2)


@given(st.integers(1, 14), st.integers(1, 5), st.integers(1, 3))
def test_in_order_a_mean_over_steps_is_one_over_rows_whatever_is_left_for_the_last(
    prompts: int, step_prompts: int, world: int
) -> None:
    rows = table(prompts, samples=2)
    plan = replace(PLAN, step_prompts=step_prompts, world=world, shuffle=False)
    workers = [Steps(rows, replace(plan, rank=rank)) for rank in range(world)]
    weight: dict[int, float] = {}
    for place in range(len(workers[0])):
        for item in (steps[0, place] for steps in workers):
            weight |= {row: 1.0 / item["rows"] / len(workers[0]) for row in rows_of(item)}
    assert weight == {row: pytest.approx(1.0 / len(rows)) for row in range(len(rows))}
