"""What a step tells of itself, and the rules that stop a training.

Run: python -m pytest tests/gpo/training/test_watch.py
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from gpo.training.watch import (
    StepRows,
    StopLimits,
    StopRule,
    check_finite,
    clamped_share,
    evaluation_prefix,
    step_numbers,
    tell_evaluation,
)


def test_slope_and_correlation_follow_their_definitions() -> None:
    target = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    numbers = step_numbers(0.25 * target + 1.0, target, torch.tensor([5.0, 5.0, 5.0, 5.0]), target)
    assert numbers["target_correlation"] == pytest.approx(1.0)
    assert numbers["target_slope"] == pytest.approx(0.25)
    assert "length_score_correlation" not in numbers


def test_slope_is_that_of_the_ratio_that_the_loss_has_when_it_is_divided_by_length() -> None:
    target, length = torch.tensor([-2.0, 0.0, 1.0, 3.0]), torch.tensor([4.0, 9.0, 16.0, 25.0])
    numbers = step_numbers(target * length.sqrt(), target, length, target, length_power=0.5)
    assert numbers["target_slope"] == pytest.approx(1.0) and numbers["target_correlation"] == pytest.approx(1.0)
    assert numbers["log_ratio_max_abs"] == pytest.approx(15.0)


def test_kl_is_half_the_mean_square_and_near_the_exact_kl_for_small_moves() -> None:
    policy = torch.softmax(torch.tensor([0.1, -0.05, 0.02, 0.0], dtype=torch.float64), 0)
    start = torch.full((4,), 0.25, dtype=torch.float64)
    ratio = (policy / start).log()
    exact = (policy * ratio).sum().item()
    numbers = step_numbers(ratio, torch.zeros(4), torch.ones(4), torch.zeros(4))
    assert numbers["kl"] == pytest.approx(ratio.square().mean().item() / 2)
    assert numbers["kl"] == pytest.approx(exact, rel=0.1)


def test_the_expected_length_weighs_answers_by_how_much_likelier_they_became() -> None:
    ratio, length = torch.tensor([math.log(3.0), 0.0]), torch.tensor([10.0, 2.0])
    numbers = step_numbers(ratio, torch.tensor([1.0, 0.0]), length, torch.tensor([0.1, 0.3]))
    assert numbers["length"] == 6.0 and numbers["length_expected"] == pytest.approx(8.0)
    assert numbers["length_score_correlation"] == pytest.approx(-1.0), "whatever the loss compares with"
    assert math.isfinite(step_numbers(1e4 * ratio, ratio, length, ratio)["length_expected"])


def test_targets_at_the_clamp_are_counted() -> None:
    target = torch.tensor([-3.0, 3.0, 1.0, 0.0])
    assert clamped_share(target, 3.0) == 0.5


def numbers(**changes: float) -> dict[str, float]:
    return {"log_ratio_mean": 0.0, "kl": 0.0, "length": 10.0, "length_expected": 10.0, **changes}


def fed(limits: StopLimits, values: list[dict[str, float]]) -> StopRule:
    rule = StopRule(limits)
    for step, changes in enumerate(values, 1):
        state = SimpleNamespace(global_step=step, log_history=[], stateful_callbacks={})
        control = SimpleNamespace(should_training_stop=False)
        before = rule.stopped
        rule.judge([numbers(**changes)], state, control)
        assert control.should_training_stop is (rule.stopped is not None and before is None)
        assert len(state.log_history) == int(control.should_training_stop)
    return rule


@pytest.mark.parametrize(
    ("limits", "changes", "rule"),
    [
        (StopLimits(kl=2.0, window=2), {"kl": 3.0}, "kl"),
        (StopLimits(length_growth=0.2, window=2), {"length_expected": 13.0}, "length_growth"),
        (StopLimits(collapse=5.0, window=2), {"log_ratio_mean": -6.0}, "collapse"),
    ],
)
def test_each_rule_fires_on_the_mean_of_its_window(limits: StopLimits, changes: dict[str, float], rule: str) -> None:
    stopped = fed(limits, [{}, changes, changes, changes]).stopped
    assert stopped is not None and stopped["rule"] == rule and stopped["step"] == 3
    assert stopped["value"] > stopped["limit"]
    assert fed(limits, [{}, changes, {}, changes]).stopped is None


def test_a_rule_looks_back_at_the_steps_before_a_resume_and_the_stopping_step_is_not_saved() -> None:
    before, after = (StopRule(StopLimits(kl=2.0, window=2)) for _ in range(2))
    state = SimpleNamespace(global_step=1, log_history=[], stateful_callbacks={})
    control = SimpleNamespace(should_training_stop=False, should_save=True)
    before.judge([numbers(kl=3.0)], state, control)
    assert control.should_save and not control.should_training_stop
    kept = json.loads(json.dumps(state.stateful_callbacks))
    state = SimpleNamespace(global_step=2, log_history=[], stateful_callbacks=kept)
    after.on_train_begin(None, state, control)
    after.judge([numbers(kl=3.0)], state, control)
    assert control.should_training_stop and not control.should_save
    after.on_train_begin(None, SimpleNamespace(stateful_callbacks={}), control)
    assert after.stopped is None


def test_a_save_at_the_end_of_the_epoch_is_taken_back_by_a_rule_that_stopped_and_by_no_other() -> None:
    for stopped in (True, False):
        rule = fed(StopLimits(kl=2.0, window=1), [{"kl": 3.0 if stopped else 1.0}])
        control = SimpleNamespace(should_save=True)
        rule.on_epoch_end(None, None, control)
        assert control.should_save is not stopped


def test_without_a_limit_a_rule_is_off_and_workers_exchange_no_rows_for_it() -> None:
    assert not StopRule(StopLimits()).is_on
    assert all(StopRule(StopLimits(**{name: 1.0})).is_on for name in ("kl", "length_growth", "collapse"))


def test_no_rule_is_on_by_itself() -> None:
    assert fed(StopLimits(window=1), [{"kl": 1e9, "length_expected": 1e9, "log_ratio_mean": -1e9}]).stopped is None


class Workers:
    """What accelerate does for one worker among others that have more rows: it fills up, and gathers."""

    device = torch.device("cpu")

    def pad_across_processes(self, rows: torch.Tensor, pad_index: float) -> torch.Tensor:
        return torch.cat([rows, torch.full((3, rows.shape[1]), float(pad_index))])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def test_rows_of_each_step_become_its_numbers_when_they_are_asked_for() -> None:
    rows, target, length = StepRows(Workers()), torch.tensor([1.0, -2.0]), torch.tensor([3, 4])
    score = torch.tensor([0.2, 0.7])
    for shifts in ([0.0, 1.0], [2.0]):
        for shift in shifts:
            rows.add(target + shift, target, length, target, score)
        rows.end_step("train")
    rows.add(target, target, length, target, score)
    rows.end_step("eval")
    assert rows.numbers("eval", 0.0, None) == [step_numbers(target, target, length, score)]
    two_parts = step_numbers(torch.cat([target, target + 1.0]), target.repeat(2), length.repeat(2), score.repeat(2))
    assert rows.numbers("train", 0.0, None) == [two_parts, step_numbers(target + 2.0, target, length, score)]
    assert rows.numbers("train", 0.0, None) == rows.numbers("eval", 0.0, None) == []


def test_steps_of_an_evaluation_are_one_however_many_rows_the_last_has() -> None:
    rows, target, length = StepRows(Workers()), torch.tensor([1.0, -2.0]), torch.tensor([3, 4])
    for part in (slice(0, 2), slice(0, 1)):
        rows.add(target[part] + 0.5, target[part], length[part], target[part], target[part])
        rows.end_step("eval")
    every = torch.tensor([1.0, -2.0, 1.0])
    assert rows.numbers("eval", 0.0, None) == [step_numbers(every + 0.5, every, torch.tensor([3, 4, 3]), every)]


def test_the_numbers_of_an_evaluation_are_named_as_its_loss_and_its_steps_are_those_that_were_made() -> None:
    logs = {"eval_a_runtime": 0.5, "eval_a_steps_per_second": 2.0, "eval_a_loss": 1.5}
    assert evaluation_prefix(logs) == "eval_a" and evaluation_prefix({"loss": 1.0, "epoch": 1.0}) is None
    tell_evaluation(logs, "eval_a", {"kl": 0.25}, steps=3)
    assert logs == {"eval_a_runtime": 0.5, "eval_a_steps_per_second": 6.0, "eval_a_loss": 1.5, "eval_a_kl": 0.25}


def test_a_worker_that_was_idle_in_a_step_has_no_row_of_it() -> None:
    rows, target, length = StepRows(Workers()), torch.tensor([1.0, -2.0]), torch.tensor([3, 4])
    rows.add(target, target, length, target, target)
    rows.end_step("train")
    rows.end_step("train")
    own = torch.cat([step for step in rows._closed["train"]])
    assert own.shape == (2, 5)


def test_a_row_that_is_no_number_is_told_and_not_taken_for_padding() -> None:
    rows, target, length = StepRows(Workers()), torch.tensor([1.0, -2.0]), torch.tensor([3, 4])
    rows.add(torch.tensor([math.nan, 1.0]), target, length, target, target)
    rows.end_step("train")
    (numbers,) = rows.numbers("train", 0.0, 2.0)
    assert math.isnan(numbers["kl"]) and math.isnan(numbers["log_ratio_mean"])
    assert numbers["length"] == 3.5 and numbers["clamped"] == 0.5


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -1.0)])
def test_a_loss_or_a_gradient_that_is_not_finite_is_an_error(loss: float, norm: float) -> None:
    check_finite(1.0, 0.0, 7, 1e-6)
    with pytest.raises(FloatingPointError, match=r"step 7: loss is .*expected finite numbers.*learning_rate .1e-06."):
        check_finite(loss, norm, 7, 1e-6)
