"""Several training workers: what accelerate, DeepSpeed and FSDP2 are told, and how their pieces become one model again.

Nothing here knows what is trained, so that every Ray Train worker can use it.
"""

import importlib.util
import os
from typing import Any, Literal

Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp"]


def work_alone() -> None:
    """A single worker needs no DDP around its model, which costs a copy of all gradients and a pass over the graph."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def threads_of_worker() -> int:
    """CPU threads of a Ray Train worker: its node's cores, shared out among the training's workers on that node."""
    import ray.train

    cores = len(os.sched_getaffinity(0))
    return max(1, cores // ray.train.get_context().get_local_world_size())


def sharding_obstacle(sharding: Sharding) -> str | None:
    """Why this machine cannot shard so; None: it can. Asked before anything heavy starts."""
    if sharding.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return (
            "DeepSpeed is not installed; on a CPU: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed==0.19.8, "
            "on a GPU: pip install 'gpo-align[cuda]'"
        )
    if sharding == "fsdp":
        import torch

        if not torch.cuda.is_available():
            return "accelerate runs plain DDP where FSDP2 is asked for on a CPU; use zero2 or zero3 there"
    return None


def sharding_arguments(sharding: Sharding) -> dict[str, Any]:
    """Training arguments for a way of sharding.

    Weights stay float32 in the engine and the model computes in autocast (`gpo.training.log_probs`): an engine in
    bfloat16 would round the master weights at every start.
    """
    if sharding == "none":
        return {}
    if sharding == "fsdp":
        return {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    return {**_deepspeed_on_a_cpu(), "deepspeed": deepspeed_config(int(sharding.removeprefix("zero")))}


def _deepspeed_on_a_cpu() -> dict[str, Any]:
    """What accelerate 1.15 and DeepSpeed 0.19 must be told on a machine without a GPU; nothing on one with.

    With use_cpu accelerate leaves DeepSpeed out without a word; without it and without a GPU it takes two workers for
    two single ones unless the back end is named, which transformers has no argument for. And DeepSpeed compiles
    shared-memory collectives when a process first needs them: a process killed meanwhile leaves a lock on which every
    later start waits for ever, so gloo moves everything.
    """
    import torch

    if torch.cuda.is_available():
        return {}
    import deepspeed.ops
    from accelerate.state import AcceleratorState, PartialState

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return {"use_cpu": False, "accelerator_config": {"use_configured_state": True}}


def deepspeed_config(stage: int) -> dict[str, Any]:
    """ZeRO of a stage around the trainer's own optimizer; `auto` values are filled in by transformers."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            # Smaller than this stays whole on every worker; norms and biases are not worth a message each.
            "stage3_param_persistence_threshold": 10_000,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def whole_state(trainer: Any) -> dict[str, Any]:
    """All weights on the first worker, whatever holds them in pieces; every worker must call this."""
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state


def load_whole_again() -> None:
    """From here on this worker loads models whole, alone, whatever its training arguments are still alive.

    With ZeRO-3 they make transformers load a piece, and wait for all workers to load theirs.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
