"""A training that is resumed, or stopped by a rule and resumed, ends with the bits of an undisturbed one.

Run: python -m pytest tests/gpo/training/test_resume.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from tests.gpo.training.small_training import StopAt, make_rows, make_trainer, steps_of, weights_of


@pytest.mark.parametrize("stop", [2, 4, 6, 7, 8])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_resumed_at_any_step_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, stop: int, bf16: bool
) -> None:
    """Four steps an epoch, two epochs: stops within the first, at its end, within the second, and at the last step."""
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "bf16": bf16,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "learning_rate": 1e-3,
    }
    rows = make_rows(prompts=8)
    whole = make_trainer(tmp_path / "whole", rows, **settings)
    whole.train()
    assert whole.state.global_step == 8

    saving = {**settings, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_trainer(tmp_path / "halved", rows, callbacks=[StopAt(stop)], **saving).train()
    checkpoint = get_last_checkpoint(str(tmp_path / "halved" / "steps"))
    assert checkpoint is not None and checkpoint.endswith(f"-{stop}")
    resumed = make_trainer(tmp_path / "halved", rows, **saving)
    resumed.train(resume_from_checkpoint=checkpoint)

    assert resumed.state.global_step == 8
    assert steps_of(resumed)[-1]["loss"] == steps_of(whole)[-1]["loss"]
    expected = weights_of(whole)
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_a_stop_rule_ends_the_training_and_is_recorded(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=1e-2, num_train_epochs=20, stop_kl=1.0, stop_window=2)
    trainer.train()
    assert trainer.stopped is not None and trainer.stopped["rule"] == "kl"
    assert trainer.state.global_step == trainer.stopped["step"] < 60
    assert any(entry.get("stopped") == "kl" for entry in trainer.state.log_history)
    calm = make_trainer(tmp_path)
    calm.train()
    assert calm.stopped is None


STOPS: dict[str, Any] = {"learning_rate": 1e-2, "num_train_epochs": 20, "stop_kl": 1.0, "stop_window": 4}


def test_a_stop_rule_judges_every_step_whatever_is_logged(tmp_path: Path) -> None:
    logging: list[dict[str, Any]] = [{"logging_steps": 1}, {"logging_steps": 7}, {"logging_strategy": "no"}]
    found = []
    for settings in logging:
        trainer = make_trainer(tmp_path, **STOPS, **settings)
        trainer.train()
        found.append(trainer.stopped)
    assert found[0] is not None and found[0] == found[1] == found[2]


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_a_training_resumed_before_a_stop_rule_fires_stops_at_the_same_step_with_the_same_bits(
    tmp_path: Path, logging_steps: int
) -> None:
    settings: dict[str, Any] = {**STOPS, "logging_steps": logging_steps}
    saving = {**settings, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert whole.stopped is not None
    # As after a kill behind the step that stops: the window of the rule is only in the checkpoint.
    make_trainer(tmp_path / "again", **saving).train()
    resumed = make_trainer(tmp_path / "again", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopped == whole.stopped
    expected = weights_of(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(resumed).items())


def test_a_step_that_stops_is_not_saved_at_the_end_of_its_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **STOPS, batch_prompts=6, save_strategy="epoch")
    trainer.train()
    assert trainer.stopped is not None and (last := trainer.stopped["step"]) > 1
    saved = {path.name for path in (tmp_path / "steps").glob("checkpoint-*")}
    assert f"checkpoint-{last - 1}" in saved and f"checkpoint-{last}" not in saved
