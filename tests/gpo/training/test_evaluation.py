"""Evaluating between steps and after: over rows, by name, with an anchor, under DeepSpeed, with a two-mode optimizer.

Run: python -m pytest tests/gpo/training/test_evaluation.py
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset

from gpo.training.reference import pass_over
from tests.gpo.training.small_training import GPOTrainer, make_rows, make_trainer
from tests.tiny import make_tiny_model


def rows_with_references(prompts: int = 5) -> list[dict[str, Any]]:
    """With two prompts a step the last one is alone, and its answers are the farthest from their targets."""
    rows = make_rows(prompts, seed=9)
    far = [prompts - 1 == int(row["prompt_id"]) for row in rows]
    return [
        {**row, "target": row["target"] + 9.0 * last, "ref_logps": -50.0} for row, last in zip(rows, far, strict=True)
    ]


def by_hand(trainer: GPOTrainer, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Loss and KL estimate of all rows together, each counted once."""
    dataset = trainer._prepare_dataset(Dataset.from_list(rows), trainer.processing_class, trainer.args, "eval")
    ratio = pass_over(trainer, trainer.model, dataset, trainer._plan(shuffle=False)) - torch.tensor(
        dataset["ref_logps"][:]
    )
    loss = (ratio - torch.tensor(dataset["target"][:])).square().mean().item()
    return {"loss": loss, "kl": ratio.square().mean().item() / 2, "log_ratio_max_abs": ratio.abs().max().item()}


def test_an_evaluation_is_over_rows_though_its_last_step_has_fewer(tmp_path: Path) -> None:
    rows = rows_with_references()
    trainer = make_trainer(tmp_path, eval_dataset=Dataset.from_list(rows))
    assert [len(part["row"]) for item in trainer.get_eval_dataloader() for part in item["parts"]] == [6, 6, 3]
    found = trainer.evaluate()
    assert {name: found[f"eval_{name}"] for name in ("loss", "kl", "log_ratio_max_abs")} == pytest.approx(
        by_hand(trainer, rows), rel=1e-4
    )


def test_the_speed_of_an_evaluation_counts_answers_and_the_steps_that_were_made(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_dataset=Dataset.from_list(rows_with_references()))
    found = trainer.evaluate()
    assert found["eval_samples_per_second"] * found["eval_runtime"] == pytest.approx(15, rel=0.05)
    assert found["eval_steps_per_second"] * found["eval_runtime"] == pytest.approx(3, rel=0.05)


def test_each_of_several_evaluation_sets_logs_its_numbers_under_its_own_name(tmp_path: Path) -> None:
    sets = {"a": rows_with_references(), "b": rows_with_references(2)}
    named = {name: Dataset.from_list(rows) for name, rows in sets.items()}
    trainer = make_trainer(tmp_path, eval_dataset=named, eval_strategy="steps", eval_steps=3)
    for found in (trainer.evaluate(), trainer.evaluate(named)):
        for name, rows in sets.items():
            assert found[f"eval_{name}_kl"] == pytest.approx(by_hand(trainer, rows)["kl"], rel=1e-4)
        assert "eval_kl" not in found
    trainer.train()
    last = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    for name, rows in sets.items():
        assert last[f"eval_{name}_kl"] == pytest.approx(by_hand(trainer, rows)["kl"], rel=1e-4)
    assert "eval_kl" not in last and "kl" in last


def test_rows_with_references_of_their_own_are_evaluated_after_the_reference_is_gone(tmp_path: Path) -> None:
    rows = rows_with_references()
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert trainer.evaluate(Dataset.from_list(rows))["eval_loss"] == pytest.approx(
        by_hand(trainer, rows)["loss"], rel=1e-4
    )
    both = trainer.evaluate({"a": Dataset.from_list(rows), "b": Dataset.from_list(rows[:6])})
    assert both["eval_b_loss"] == pytest.approx(by_hand(trainer, rows[:6])["loss"], rel=1e-4)
    without = Dataset.from_list([{**row, "ref_logps": None} for row in rows])
    for refused in (without, {"a": Dataset.from_list(rows), "b": without}):
        with pytest.raises(ValueError, match="the reference model is not kept in memory"):
            trainer.evaluate(refused)


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
