"""How a model in training is spread over workers, in the words of transformers' TrainingArguments.
What it is: DeepSpeed ZeRO-1/2/3 and FSDP2 from one choice. What it is not: it starts no workers.

On the CPU accelerate 1.15 takes FSDP2 settings and runs DDP instead without a word, so FSDP2 is refused there.
"""

from typing import Any

import torch

from reward.errors import RewardInputError
from reward.pair_model import PairModel
from reward.training_settings import TrainingSettings

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def argument_values(settings: TrainingSettings) -> dict[str, Any]:
    """Keywords for TrainingArguments; raises RewardInputError where the choice cannot work."""
    on_cpu = not torch.cuda.is_available()
    values: dict[str, Any] = {"use_cpu": on_cpu}
    if settings.sharding in ZERO_STAGES:
        require_deepspeed()
        values["deepspeed"] = deepspeed_config(settings)
    elif settings.sharding == "fsdp2":
        if on_cpu:
            raise RewardInputError(
                "sharding is fsdp2 and torch finds no GPU, where accelerate would silently train with DDP; expected "
                "none, zero1, zero2 or zero3 on a CPU"
            )
        values |= fsdp2_values()
    return values


def require_deepspeed() -> None:
    """Raises RewardInputError when it is not installed."""
    from importlib.util import find_spec

    if find_spec("deepspeed") is None:
        raise RewardInputError(
            "sharding needs deepspeed, which is missing; "
            "`DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed==0.19.8` installs it"
        )


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """A DeepSpeed configuration; its optimizer is the trainer's own."""
    zero: dict[str, Any] = {"stage": ZERO_STAGES[settings.sharding]}
    if settings.sharding == "zero3":
        zero |= {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    base = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        "steps_per_print": 1_000_000_000,
    }
    return base | settings.deepspeed


def tell_zero3(model: PairModel) -> None:
    """Name the weights that a module reads out of another one, which ZeRO-3 would otherwise not gather in time."""
    from deepspeed.zero import register_external_parameter

    heads = model.model.heads
    outer: list[Any] = [heads.value_head.weight]
    if model.settings.sft_weight:
        head = model.model.backbone.get_input_embeddings() if model.lm_head is None else model.lm_head
        outer.append(head.weight)
    inner = [layer.weight for layer in (heads.value_head, heads.prompt_head) if layer is not None]
    for module, weights in ((model, outer), (heads, inner)):
        for weight in weights:
            register_external_parameter(module, weight)


def fsdp2_values() -> dict[str, Any]:
    """FSDP2 by accelerate, whole weights for saving."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "fsdp_version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
        },
    }
