"""The vLLM engine behind one small face: sample, log-probabilities, reload.

Token ids go in and token ids come out; nothing is tokenised here but the text shown to people. All that is special
to vLLM (0.32 on the CPU, 0.33 on CUDA) is in this file; `tests/contract` names the version it was written for.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.errors import RolloutInputError
from rollout.records import SampledPrompt

if TYPE_CHECKING:
    from vllm import LLM

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 8192
"""Admitted tokens a step. A seeded request must not be split over steps (see `_vllm_arguments`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the engine of one actor may use."""

    max_model_len: int
    dtype: str = "bfloat16"
    kv_cache_gib: float = 1.0
    """CPU only; vLLM would take what it likes."""
    gpu_memory_utilization: float = 0.85
    tensor_parallel: int = 1
    max_sequences: int = 128
    threads: int = 1
    compile: bool = False
    """Compiling costs a minute at start and pays from some hundred thousand tokens on."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How K answers of a prompt are drawn."""

    samples: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = all tokens."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt for the engine."""

    prompt_id: str
    prompt: list[dict[str, str]]
    prompt_ids: list[int]
    seed: int


class PolicyEngine:
    """A vLLM engine that holds one version of the policy."""

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        """Start the engine on a plain Hugging Face directory."""
        self._settings = settings
        self.on_cpu = _vllm_runs_on_cpu()
        self._llm = _start(model, settings, on_cpu=self.on_cpu)

    def sample(self, requests: list[SampleRequest], sampling: Sampling, weight_version: str) -> list[SampledPrompt]:
        """K answers to each prompt in one request a prompt; sample k of a request uses its seed + k."""
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids) for request in requests]
        parameters = [
            SamplingParams(
                n=sampling.samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=request.seed,
            )
            for request in requests
        ]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return [
            SampledPrompt(
                prompt_id=request.prompt_id,
                prompt=request.prompt,
                prompt_ids=request.prompt_ids,
                seed=request.seed,
                weight_version=weight_version,
                completion=[answer.text for answer in output.outputs],
                completion_ids=[list(answer.token_ids) for answer in output.outputs],
                finish_reason=[str(answer.finish_reason) for answer in output.outputs],
            )
            for request, output in zip(requests, outputs, strict=True)
        ]

    def token_logps(self, sequences: list[list[int]]) -> list[list[float]]:
        """log p of every token of each sequence but the first, in nats."""
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in sequences]
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        found: list[list[float]] = []
        for ids, output in zip(sequences, outputs, strict=True):
            positions: Any = output.prompt_logprobs
            found.append([position[token].logprob for token, position in zip(ids[1:], positions[1:], strict=True)])
        return found

    def reload(self, model: Path) -> None:
        """Replace the weights by those of another directory of the same architecture.

        After any exception the engine holds a mixture and must be thrown away, not retried.
        """
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
        if self.on_cpu:
            self._llm.apply_model(_repack_tied_head)
        self._llm.reset_prefix_cache()


def _repack_tied_head(model: Any) -> None:
    """vLLM 0.32 on the CPU keeps the old packed LM head of tied embeddings after a reload, and says nothing."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(model.config, "tie_word_embeddings", False):
        head.quant_method.process_weights_after_loading(head)


def _vllm_runs_on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def prepare_environment(settings: EngineSettings) -> None:
    """Set what vLLM and OpenMP read once at import; call it before anything imports torch or vllm."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # apply_model hands our own function to the worker; on the CPU the worker is this very process.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if not _cuda_devices_present():
        # As separate processes the engine core lowers torch to one thread: 180 tokens/s instead of 900.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)


def _cuda_devices_present() -> bool:
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _vllm_arguments(model: Path, settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_sequences,
        "enforce_eager": not settings.compile,
        "trust_remote_code": settings.trust_remote_code,
        "load_format": "safetensors",
        # A request with its own seed fails on the CPU when its prefill is split ("CPU Generator does not use
        # offset"), so no prefill is chunked and a step admits at least one whole prompt.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PREFILL_TOKENS, settings.max_model_len),
        # The prompt's generation_config.json must not change the sampling that the run's config states.
        "generation_config": "vllm",
        "seed": 0,
    }
    if on_cpu:
        return arguments | {"distributed_executor_backend": "uni"}
    return arguments | {
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_sleep_mode": True,
    }


def _start(model: Path, settings: EngineSettings, *, on_cpu: bool) -> "LLM":
    from vllm import LLM

    logger.info(
        "The engine runs %s with %d threads, because %s; prefill is not chunked, so that seeded requests work.",
        "in this process" if on_cpu else "as vLLM's own processes",
        settings.threads,
        "vLLM found no GPU" if on_cpu else "vLLM found a GPU",
    )
    if not (model / "config.json").is_file():
        raise RolloutInputError(f"{model}: no config.json; expected a Hugging Face model directory")
    return LLM(**_vllm_arguments(model, settings, on_cpu=on_cpu))
