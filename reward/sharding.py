"""How a model in training is spread over workers, in the words of transformers' TrainingArguments.
What it is: DeepSpeed ZeRO-1/2/3 and FSDP2 from one choice, and the check that it was followed. What it is not: it
starts no workers.

On the CPU accelerate 1.15 takes FSDP2 settings and runs DDP instead without a word, so FSDP2 is refused there. Weights
stay float32 in the engine and the model computes in autocast: an engine in bfloat16 would round master weights, heads
and tau.
"""

import os
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments

from reward.errors import RewardInputError
from reward.pair_model import PairModel
from reward.training_settings import TrainingSettings

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def argument_values(settings: TrainingSettings, model: PairModel, seconds: float) -> dict[str, Any]:
    """Keywords for TrainingArguments; `seconds` is the deadline of what workers do together."""
    on_cpu = not torch.cuda.is_available()
    if settings.sharding in ZERO_STAGES:
        return {"deepspeed": deepspeed_config(settings), **(_deepspeed_on_a_cpu(seconds) if on_cpu else {})}
    if settings.sharding == "fsdp2":
        return fsdp2_values(model)
    return {"use_cpu": on_cpu}


def _deepspeed_on_a_cpu(seconds: float) -> dict[str, Any]:
    """What accelerate 1.15 and DeepSpeed 0.19 must be told on a machine without a GPU.

    Without the name of a back end accelerate takes two workers for two single ones, and transformers has no argument
    for it. And DeepSpeed compiles shared-memory collectives when a process first needs them: a process killed meanwhile
    leaves a lock on which every later start waits for ever, so gloo moves everything.
    """
    import deepspeed.ops
    from accelerate.state import AcceleratorState, PartialState

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(backend="gloo", timeout=timedelta(seconds=seconds))
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return {"use_cpu": False, "accelerator_config": {"use_configured_state": True}}


def use_one_device(arguments: TrainingArguments) -> None:
    """One process trains on one GPU: with several in sight transformers would put nn.DataParallel around the model."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def check_sharding(sharding: str) -> None:
    """Raises RewardInputError where this machine cannot spread a model so; asked before one is opened."""
    if sharding in ZERO_STAGES and find_spec("deepspeed") is None:
        raise RewardInputError(
            f"sharding is {sharding} and deepspeed is missing; "
            "`DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed==0.19.8` installs it"
        )
    if sharding == "fsdp2" and not torch.cuda.is_available():
        raise RewardInputError(
            "sharding is fsdp2 and torch finds no GPU, where accelerate would silently train with DDP; expected none, "
            "zero1, zero2 or zero3 on a CPU"
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
        "steps_per_print": 1_000_000_000,
    }
    return _merged(base, settings.deepspeed)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with single entries replaced, also those of sections within."""
    found = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        found[name] = _merged(base[name], value) if both else value
    return found


def tell_zero3(model: PairModel) -> None:
    """Name the weights that a module reads out of another one, which ZeRO-3 would otherwise not gather in time."""
    from deepspeed.runtime.zero import register_external_parameter

    heads = model.model.heads
    outer: list[Any] = [heads.value_head.weight]
    if model.settings.sft_weight:
        head = model.model.backbone.get_input_embeddings() if model.lm_head is None else model.lm_head
        outer.append(head.weight)
    inner = [layer.weight for layer in (heads.value_head, heads.prompt_head) if layer is not None]
    for module, weights in ((model, outer), (heads, inner)):
        for weight in weights:
            register_external_parameter(module, weight)


def fsdp2_values(model: PairModel) -> dict[str, Any]:
    """FSDP2 by accelerate, layer by layer, whole weights for saving."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": sorted(model.model.backbone._no_split_modules or ()),
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
        },
    }


def check_sharded(wrapped: Any, sharding: str) -> None:
    """Raises RuntimeError where a library left whole what it was to spread; `wrapped` is what the trainer runs."""
    if sharding in ZERO_STAGES:
        stage = wrapped.zero_optimization_stage() if hasattr(wrapped, "zero_optimization_stage") else 0
        spread = stage == ZERO_STAGES[sharding]
    else:
        spread = sharding == "none" or all(hasattr(weight, "to_local") for weight in wrapped.parameters())
    if not spread:
        raise RuntimeError(f"sharding is {sharding}, but the model came back as a whole {type(wrapped).__name__}")
