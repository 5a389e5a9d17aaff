"""Evaluating between steps and after: with an anchor, under DeepSpeed, with an optimizer that has two modes.

Run: python -m pytest tests/gpo/training/test_evaluation.py
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset

from tests.gpo.training.small_training import make_rows, make_trainer
from tests.tiny import make_tiny_model


def test_a_data_set_that_comes_after_the_anchor_is_gone_is_told_what_to_do(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, pull=0.5, anchor_model=make_tiny_model(seed=1))
    late = Dataset.from_list(make_rows(prompts=2, seed=9))
    message = r"pull=0.5: this evaluation data set has no anchor_logps; .* not kept: give the data set then, as eval_da"
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(late)
    assert trainer.evaluate(late.add_column("anchor_logps", [-9.0] * len(late)))["eval_loss"] > 0.0


def test_an_evaluation_under_deepspeed_keeps_targets_and_references_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers casts every float of a batch to the engine's type; bfloat16 holds three digits of them."""
    rows = [{**row, "target": 1.001, "ref_logps": -100.3} for row in make_rows(prompts=2)]
    trainer = make_trainer(tmp_path, rows, eval_dataset=Dataset.from_list(rows), batch_prompts=2)
    (item,) = trainer.get_eval_dataloader()
    expected, _, _ = trainer.prediction_step(trainer.model, item, prediction_loss_only=True)
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)
    trainer.is_deepspeed_enabled = True
    found, _, _ = trainer.prediction_step(trainer.model, item, prediction_loss_only=True)
    assert torch.equal(found, expected)


class TwoModes(torch.optim.SGD):
    """As schedule-free optimizers are: weights of an evaluation are others than those that a step starts from."""

    training = False
    steps: list[bool]

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def step(self, closure: Any = None) -> None:
        self.steps.append(self.training)
        super().step(closure)


def test_an_optimizer_with_two_modes_is_in_that_of_training_at_every_step(tmp_path: Path) -> None:
    evaluation: dict[str, Any] = {"eval_dataset": Dataset.from_list(make_rows(prompts=2)), "eval_strategy": "steps"}
    trainer = make_trainer(tmp_path, **evaluation, eval_steps=1)
    optimizer = TwoModes(trainer.model.parameters(), lr=1e-4)
    optimizer.steps = []
    trainer.optimizer = optimizer
    trainer.train()
    assert optimizer.steps == [True] * 3 and not optimizer.training
