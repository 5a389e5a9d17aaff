"""Which settings the vLLM engine gets on this machine, and why: every choice comes with its reason for the log.

Pure but for `prepare_environment`. Imports neither torch nor vllm.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLACK_TOKENS = 8
"""By which an engine's longest sequence is longer than what is asked of it, where the model allows it."""
PREFILL_TOKENS = 8192
"""Admitted tokens a step. A seeded request must not be split over steps (see `vllm_arguments`)."""
CPU_BLOCK_TOKENS = 32
"""The smallest block of KV cache that vLLM 0.32 has on a CPU."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can make room for; an adapter takes the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the engine of one actor may use."""

    max_model_len: int
    dtype: str = "bfloat16"
    kv_cache_gib: float = 1.0
    """CPU only; vLLM would take what it likes."""
    kv_cache_reason: str = "that is the default"
    """Why so much, for the log."""
    gpu_memory_utilization: float = 0.85
    tensor_parallel: int = 1
    max_sequences: int = 256
    threads: int = 1
    compile: bool = False
    """Compiling costs a minute at start and pays from some hundred thousand tokens on."""
    sleep_level: int = 0
    """On a GPU: 1 parks the weights in the machine's memory while others work, 2 drops them; 0 keeps all."""
    lora_rank: int = 0
    """Rank of LoRA adapters that are published; 0: full weights only."""
    lora_base: str = ""
    """Directory of the policy that the adapters belong to."""
    weight_transfer: str = "disk"
    """disk, or nccl: vLLM's own engine for weights that come over the network (GPU only)."""
    trust_remote_code: bool = False


def vllm_arguments(model: Path, settings: EngineSettings, *, on_cpu: bool) -> tuple[dict[str, Any], list[str]]:
    """Arguments of `vllm.LLM`, and a sentence for each choice made."""
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_sequences,
        "enforce_eager": not settings.compile,
        "trust_remote_code": settings.trust_remote_code,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PREFILL_TOKENS, settings.max_model_len),
        # The model's generation_config.json must not change the sampling that the run's config states.
        "generation_config": "vllm",
        "seed": 0,
    }
    reasons = [
        f"at most {settings.max_model_len} tokens a sequence: the longest prompt plus the longest answer of this run",
        "prefill is not chunked, because a seeded request fails on the CPU when its prefill is split over steps",
        f"{settings.dtype}, because policy.dtype is that",
        "compiled, because rollout.engine.compile is set"
        if settings.compile
        else "not compiled: that takes a minute at start; set rollout.engine.compile for long runs",
    ]
    if settings.lora_rank:
        room = next((rank for rank in LORA_RANKS if rank >= settings.lora_rank), settings.lora_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
        reasons.append(f"with room for LoRA adapters of rank {settings.lora_rank}, because adapters are published")
    more, why = _on_cpu(settings) if on_cpu else _on_gpu(settings)
    return arguments | more, reasons + why


def _on_cpu(settings: EngineSettings) -> tuple[dict[str, Any], list[str]]:
    cache_bytes = round(settings.kv_cache_gib * 2**30)
    arguments = {
        "distributed_executor_backend": "uni",
        "kv_cache_memory_bytes": cache_bytes,
        "block_size": CPU_BLOCK_TOKENS,
    }
    return arguments, [
        "in this process, because vLLM found no GPU and its processes of its own lower torch to one thread",
        f"{settings.threads} threads on cores of its own, because engines that share cores wait for each other",
        f"{settings.kv_cache_gib:.3g} GiB of KV cache, because {settings.kv_cache_reason}",
        f"in blocks of {CPU_BLOCK_TOKENS} tokens, because only whole blocks are shared by the answers to a prompt; "
        "vLLM's 128 would compute a short prompt anew for each",
    ]


def _on_gpu(settings: EngineSettings) -> tuple[dict[str, Any], list[str]]:
    parallel = settings.tensor_parallel
    arguments: dict[str, Any] = {
        "tensor_parallel_size": parallel,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_sleep_mode": settings.sleep_level > 0,
        # One GPU: the worker may live in this process. Several: Ray places a worker on each bundle of this actor.
        "distributed_executor_backend": "uni" if parallel == 1 else "ray",
    }
    if settings.weight_transfer != "disk":
        arguments["weight_transfer_config"] = {"backend": settings.weight_transfer}
    where = "in this process, because one GPU needs no other" if parallel == 1 else f"over {parallel} GPUs by Ray"
    return arguments, [
        f"on a GPU, {where}",
        f"{settings.gpu_memory_utilization:.0%} of its memory, because rollout.engine.gpu_memory_utilization says so",
        f"sleep level {settings.sleep_level}: "
        + ("phases share the GPU, so it is freed in between" if settings.sleep_level else "it has the GPU to itself"),
        f"weights come by {settings.weight_transfer}",
    ]


def prepare_environment(settings: EngineSettings, cores: Sequence[int] = ()) -> None:
    """Set what vLLM and OpenMP read once at import; call it before anything imports torch or vllm."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # apply_model hands our own function to the worker; on the CPU the worker is this very process.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if cuda_devices_present():
        return
    # As separate processes the engine core lowers torch to one thread: 180 tokens/s instead of 900.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # It would override what the config says, in whole GiB.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ["OMP_NUM_THREADS"] = str(len(cores) or settings.threads)
    # Threads that spin while they wait take the cores from a scorer beside.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cuda_devices_present() -> bool:
    """Whether this machine has an NVIDIA device that is not hidden."""
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
