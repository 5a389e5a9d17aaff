"""Tiny rows and a trainer on a tiny model, for the tests of training."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedModel, TrainerCallback

from gpo.training.trainer import GPOConfig, GPOTrainer
from tests.tiny import make_tiny_model, make_tokenizer

torch.set_num_threads(1)
TOKENIZER = make_tokenizer()


def make_rows(prompts: int = 6, samples: int = 3, seed: int = 0, scale: float = 2.0) -> list[dict[str, Any]]:
    """Answers of different length to prompts of different length, targets that average to 0 over a prompt."""
    generator = torch.Generator().manual_seed(seed)

    def ids(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest, (), generator=generator))
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    rows = []
    for prompt in range(prompts):
        prompt_ids, target_K = ids(2, 12), torch.randn(samples, generator=generator)
        for target in (scale * (target_K - target_K.mean())).tolist():
            row = {"prompt_id": str(prompt), "prompt_ids": prompt_ids, "completion_ids": ids(1, 20), "target": target}
            rows.append(row)
    return rows


def make_trainer(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> GPOTrainer:
    parts = ("callbacks", "eval_dataset", "peft_config", "ref_model", "anchor_model")
    given_parts = {name: changes.pop(name) for name in parts if name in changes}
    model = changes.pop("model", None) or make_tiny_model()
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "steps"),
        "batch_prompts": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
        "seed": 3,
    }
    return GPOTrainer(
        model=model,
        args=GPOConfig(**{**arguments, **changes}),
        train_dataset=Dataset.from_list(make_rows() if rows is None else rows),
        processing_class=TOKENIZER,
        **given_parts,
    )


def make_model_that_sees(seed: int = 0) -> PreTrainedModel:
    """A tiny model with a vision tower, of which rows of text use nothing."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=make_tiny_model("gemma3_text").config.to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


class StopAt(TrainerCallback):
    """Ends the training at a step, as if there were no more."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self._step


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step, before the optimizer sees them."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.first:
            named = getattr(model, "module", model).named_parameters()
            self.first = {name: p.grad.clone() for name, p in named if p.grad is not None}


def steps_of(trainer: GPOTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights_of(trainer: GPOTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
