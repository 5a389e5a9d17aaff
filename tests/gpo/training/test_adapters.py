"""LoRA adapters in GPOTrainer: what is trained, what the reference is, and how a training goes on.

Run: python -m pytest tests/gpo/training/test_adapters.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers.trainer_utils import get_last_checkpoint

from gpo.training.reference import pass_over, reference_of
from gpo.training.trainer import GPOTrainer
from tests.gpo.training.small_training import StopAt, make_rows, make_trainer, steps_of, weights_of
from tests.tiny import make_tiny_model


def test_an_adapter_alone_is_trained_and_its_first_log_ratio_is_zero(tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, peft_config=adapter, learning_rate=1e-3)
    before = weights_of(trainer)
    trainer.train()
    steps = steps_of(trainer)
    assert steps[0]["log_ratio_max_abs"] == 0.0 and steps[-1]["log_ratio_max_abs"] > 0.0
    moved = {name for name, value in weights_of(trainer).items() if not torch.equal(value, before[name])}
    assert moved and all("lora" in name for name in moved)


def test_a_head_that_is_trained_beside_an_adapter_is_the_one_that_is_used(tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, peft_config=adapter, learning_rate=1e-3)
    before = weights_of(trainer)
    trainer.train()
    moved = [name for name, value in weights_of(trainer).items() if not torch.equal(value, before[name])]
    assert any("lm_head.modules_to_save" in name for name in moved)
    assert not any("lm_head.original_module" in name for name in moved)


@pytest.mark.parametrize("once", [True, False])
def test_dropout_of_an_adapter_trains_and_leaves_the_reference_alone(tmp_path: Path, once: bool) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
    first = make_trainer(tmp_path, peft_config=adapter, learning_rate=1e-2)
    first.train()
    first.model.save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(make_tiny_model(), tmp_path / "adapter", is_trainable=True)
    settings: dict[str, Any] = {"precompute_ref_log_probs": once, "disable_dropout": False}
    again = make_trainer(tmp_path, model=model, **settings)
    batch = next(iter(again.get_train_dataloader()))
    again.model.train()
    found = [reference_of(again, part) for part in batch["parts"] for _ in range(2)]
    assert torch.equal(found[0], found[1]) and again.model.training
    again.train()
    assert steps_of(again)[0]["log_ratio_max_abs"] > 0.0


def test_a_resumed_adapter_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    settings: dict[str, Any] = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path / "first", peft_config=adapter, **settings).train()
    start = get_last_checkpoint(str(tmp_path / "first" / "steps"))

    def trainer(folder: str, **changes: Any) -> GPOTrainer:
        model = PeftModel.from_pretrained(make_tiny_model(), str(start), is_trainable=True)
        return make_trainer(tmp_path / folder, model=model, **settings, **changes)

    whole = trainer("whole")
    whole.train()
    trainer("halved", callbacks=[StopAt(1)]).train()
    resumed = trainer("halved")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 3
    expected = weights_of(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(resumed).items())


def test_a_trained_adapter_that_goes_on_has_itself_as_reference(tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    first = make_trainer(tmp_path, peft_config=adapter, learning_rate=1e-2)
    first.train()
    first.model.save_pretrained(tmp_path / "adapter")
    for once in (True, False):
        model = PeftModel.from_pretrained(make_tiny_model(), tmp_path / "adapter", is_trainable=True)
        again = make_trainer(tmp_path, model=model, learning_rate=1e-2, precompute_ref_log_probs=once)
        again.train()
        steps = steps_of(again)
        assert steps[0]["log_ratio_max_abs"] == 0.0 and steps[-1]["log_ratio_max_abs"] > 0.0


def test_a_data_set_that_is_evaluated_after_training_has_the_policy_of_before_as_reference(tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    new = Dataset.from_list(make_rows(prompts=2, seed=9))
    trainer = make_trainer(tmp_path / "trained", peft_config=adapter, learning_rate=1e-2)
    untrained = trainer._precompute_ref_logps(new, "eval", 1)["ref_logps"][:]
    trainer.train()
    moved = pass_over(trainer, trainer.model, new, trainer._plan(shuffle=False)).tolist()
    assert moved != pytest.approx(untrained, abs=1e-4)
    assert trainer._precompute_ref_logps(new, "eval", 1)["ref_logps"][:] == pytest.approx(untrained, abs=1e-6)


def test_without_an_adapter_the_reference_is_gone_after_training_and_trl_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train()
    with pytest.raises(ValueError, match="the reference model is not kept in memory"):
        trainer.evaluate(Dataset.from_list(make_rows(prompts=2, seed=9)))
