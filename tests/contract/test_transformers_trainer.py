"""What reward.trainer, reward.sharding and reward.packed_training lean on inside transformers and peft.

Written for transformers 5.19.

Run: python -m pytest tests/contract/test_transformers_trainer.py
"""

import inspect
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AttentionInterface, Trainer, TrainingArguments
from transformers.training_args import ParallelMode

from reward.sharding import use_one_device


def test_the_version_is_the_one_that_was_read() -> None:
    assert transformers.__version__.startswith("5.19."), "read reward/trainer.py and reward/packed_training.py again"
    assert peft.__version__.startswith("0.21.")


def test_the_trainer_still_asks_its_own_methods() -> None:
    step = inspect.getsource(Trainer.training_step)
    assert "self.compute_loss(" in step and "self.loss_is_scaled_for_ga" in step
    save = inspect.getsource(Trainer._save_checkpoint)
    assert "self.save_model(" in save and "_save_rng_state" in save
    assert "self._save(" in inspect.getsource(Trainer.save_model)
    assert "skip_first_batches(train_dataloader" in inspect.getsource(Trainer._run_epoch)
    assert "self.evaluate(" in inspect.getsource(Trainer._evaluate)
    logs = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert logs.index("nested_gather(tr_loss") < logs.index("self.log(logs") < logs.index("self._save_checkpoint(")
    first = inspect.getsource(Trainer.set_initial_training_values).rpartition("return (")[2].split(",")[0]
    assert first.strip() == "num_train_epochs"


def test_a_process_that_sees_several_gpus_can_be_told_to_use_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wraps = inspect.getsource(Trainer)
    assert "self.args.n_gpu > 1" in wraps and "nn.DataParallel(model)" in wraps
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = TrainingArguments(output_dir=str(tmp_path))
    assert arguments.n_gpu == 2
    use_one_device(arguments)
    assert arguments.n_gpu == 1 and arguments.parallel_mode == ParallelMode.NOT_PARALLEL


def test_an_attention_can_be_registered_by_name() -> None:
    AttentionInterface.register("contract", lambda *_: None)
    assert "contract" in AttentionInterface().valid_keys()


def test_adapters_give_their_update_as_a_matrix() -> None:
    assert hasattr(peft.tuners.lora.Linear, "get_delta_weight") and hasattr(peft, "inject_adapter_in_model")
