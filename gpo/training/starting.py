"""What `GPOTrainer` is given, before it is a trainer: arguments that mean nothing are told, a path becomes a model."""

import copy
import os
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpo.training.forward import choose_attention
from gpo.training.log_probs import add_log_prob_head
from gpo.training.trainer_config import GPOConfig
from gpo.training.watch import StopLimits
from reward.training_layers import use_training_layers
from reward.vector_math import settle_vector_math

UNREAD_PARTS = {
    "data_collator": "steps are laid out by gpo.training.batches",
    "compute_metrics": "no logits are kept to measure; gpo.training.watch has the metrics",
}


def check_arguments(args: GPOConfig, model: Any, train_dataset: Any, anchor_model: Any, others: dict[str, Any]) -> None:
    """Raises ValueError for a data set that is none, a missing anchor, and arguments that mean nothing here."""
    for adapter in (others.get("peft_config"), *getattr(model, "peft_config", {}).values()):
        if getattr(adapter, "is_prompt_learning", False):
            raise ValueError(
                f"{type(adapter).__name__} puts virtual tokens before each row, and log-probabilities are read at the "
                "places of a row without them; expected an adapter of weights: give LoraConfig or one like it"
            )
    if not isinstance(train_dataset, Dataset):
        found = "missing" if train_dataset is None else f"a {type(train_dataset).__name__}"
        raise ValueError(f"train_dataset is {found}; expected a Dataset in one of the forms of gpo.training.rows")
    if args.pull and anchor_model is None and "anchor_logps" not in train_dataset.column_names:
        raise ValueError(f"pull={args.pull} needs an anchor; give GPOTrainer(anchor_model=...), or rows anchor_logps")
    for name, reason in UNREAD_PARTS.items():
        if others.get(name) is not None:
            raise ValueError(f"{name} has no effect on a GPOTrainer: {reason}; leave it out")


def tokenizer_of(model: Any, args: GPOConfig) -> Any:
    """The tokenizer that lies where the model came from."""
    path = model if isinstance(model, str) else model.config.name_or_path
    return AutoTokenizer.from_pretrained(path, trust_remote_code=args.trust_remote_code)


def starting_model(model: Any, args: GPOConfig, others: dict[str, Any]) -> Any:
    """The model that is trained: as it is given, or loaded from its path with what `others` say of quantisation.

    What DDP is to expect of it goes into `args`, unless it stands there.

    Raises ValueError for trainable weights in half precision. An adapter that is made for it (`peft_config`) has
    weights of its own, and what trains beside quantised weights is TRL's matter.
    """
    settle_vector_math()
    if isinstance(model, str):
        model = _load_model(model, args, others.pop("quantization_config", None))
    if others.get("peft_config") is None and not _is_quantised(model):
        _check_master_weights(model, args)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = _leaves_weights_unused(model, args)
    return model


def _load_model(path: str, args: GPOConfig, quantization: Any) -> Any:
    """In float32 for its master weights, with the attention of `forward`, unless `model_init_kwargs` says otherwise."""
    given, args.model_init_kwargs = args.model_init_kwargs, None
    own = given if isinstance(given, dict) else {}
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
    if quantization is not None:
        options["quantization_config"] = quantization
    if "attn_implementation" not in own:
        options["attn_implementation"] = choose_attention(
            path,
            "auto",
            device=args.device.type,
            compute_dtype=_compute_dtype(args),
            trust_remote_code=args.trust_remote_code,
        )
    return AutoModelForCausalLM.from_pretrained(path, **{**options, **own})


def _compute_dtype(args: GPOConfig) -> str:
    if args.compute_dtype != "auto":
        return args.compute_dtype
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


def _is_quantised(model: Any) -> bool:
    return any(getattr(model, name, False) for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"))


def _check_master_weights(model: Any, args: GPOConfig) -> None:
    """Refused and not converted: a copy twice the size is for the caller to decide on."""
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad and weight.is_floating_point()}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in trained if torch.finfo(dtype).bits < 32)
    if half:
        raise ValueError(
            f"the model's trainable weights are {', '.join(half)}, in whose rounding updates of "
            f"learning_rate={args.learning_rate:g} vanish; expected float32: load it with dtype=torch.float32, or give "
            "its path (bf16=True computes in bfloat16 all the same), or train an adapter by peft_config"
        )


def _leaves_weights_unused(model: Any, args: GPOConfig) -> bool:
    """Whether a step gives no gradient to some weights, as to a vision tower's; DDP then has to look for them.

    A model of text alone uses all. Behind reentrant checkpointing DDP cannot look.
    """
    options: Any = args.gradient_checkpointing_kwargs or {}
    reentrant = args.gradient_checkpointing and options.get("use_reentrant")
    return model.config.get_text_config() is not model.config and not reentrant


def make_ready(*models: Any) -> None:
    """Give each model the head and the layers that are trained with; None is left out.

    Raises ValueError for a model that is spread over devices: packed rows and the head would meet tensors of others.
    """
    for given in models:
        if given is None:
            continue
        model = given.get_base_model() if isinstance(given, PeftModel) else given
        devices = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
        if len(devices) > 1:
            raise ValueError(
                f"a model is spread over devices ({', '.join(devices)} in its hf_device_map); expected a whole one a "
                "worker: load it without device_map, and start the workers with `accelerate launch` (with FSDP or "
                "DeepSpeed, where one device is too small)"
            )
        add_log_prob_head(model)
        use_training_layers(model)


def stop_limits(args: GPOConfig) -> StopLimits:
    """The stop rules of the arguments."""
    return StopLimits(args.stop_kl, args.stop_length_growth, args.stop_collapse, args.stop_window)


def copy_of(model: Any) -> Any:
    """The policy as it is now. One that ZeRO-3 loaded in pieces is no copy's matter: it comes from its path again.

    It is loaded as the class that the policy has: code that came with the model was trusted when the policy was loaded.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return copy.deepcopy(model)
    return type(model).from_pretrained(
        model.config.name_or_path, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )


def needs_copy(model: Any, args: GPOConfig, others: dict[str, Any]) -> bool:
    """Whether the reference, where none is given, is a model of its own; an adapter can be left out instead.

    A live one is. So is that of FSDP, which holds the policy in pieces only when training starts; it is dropped after
    its pass. TRL would load either from where the policy was loaded; what is meant is the policy as it is now.
    """
    if isinstance(model, PeftModel) or others.get("peft_config"):
        return False
    fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return fsdp or not args.precompute_ref_log_probs
