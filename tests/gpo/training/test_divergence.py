"""A training that comes to numbers that are none ends with a message, and nothing of such a step is saved.

Run: python -m pytest tests/gpo/training/test_divergence.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.gpo.training.small_training import make_trainer, steps_of


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "steps").glob("checkpoint-*"))


class Spoil(TrainerCallback):
    """From a step on, the gradient of one weight is not a number; the loss of that step still is one."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self._step - 1:
            model.lm_head.weight.register_hook(lambda gradient: gradient * torch.nan)


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_loss_that_is_no_number_ends_the_training_before_it_is_saved(tmp_path: Path, logging_steps: int) -> None:
    """Steps of 1e30 leave weights whose loss is not finite; logged or not, the next checkpoint is not written."""
    trainer = make_trainer(
        tmp_path,
        learning_rate=1e30,
        max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=2,
        logging_steps=logging_steps,
    )
    with pytest.raises(FloatingPointError, match=r"step 2: loss is (nan|inf).*lower learning_rate"):
        trainer.train()
    assert checkpoints(tmp_path) == []


def test_a_gradient_that_is_no_number_ends_the_training_at_its_own_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Spoil(2)], save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=r"step 2: loss is [\d.]+, length of the gradient nan"):
        trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]
    assert [step["step"] for step in steps_of(trainer)] == [1]


def test_the_last_step_is_looked_at_where_nothing_is_logged_or_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Spoil(3)], logging_strategy="no")
    with pytest.raises(FloatingPointError, match="step 3"):
        trainer.train()


def test_metrics_of_steps_that_were_not_logged_are_averaged_at_the_next_log(tmp_path: Path) -> None:
    each, last = (make_trainer(tmp_path, logging_steps=steps) for steps in (1, 3))
    each.train()
    last.train()
    (found,) = steps_of(last)
    for name in ("kl", "log_ratio_mean", "length", "loss"):
        assert found[name] == pytest.approx(sum(step[name] for step in steps_of(each)) / 3), name
