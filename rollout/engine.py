"""The vLLM engine behind one small face: sample, log-probabilities, reload.

Token ids go in and token ids come out; nothing is tokenised here but the text shown to people. All that is special
to vLLM (0.32 on the CPU, 0.33 on CUDA) is in this file; `tests/contract` names the version it was written for.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.engine_settings import EngineSettings, vllm_arguments
from rollout.errors import RolloutInputError
from rollout.records import SampledPrompt
from rollout.weights import ADAPTER_CONFIG

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

logger = logging.getLogger(__name__)

STALE_HEADS = "0.32."
"""vLLM for the CPU that keeps the old packed copy of a tied head over a reload, and says nothing."""


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
    """A vLLM engine that holds one version of the policy. All calls must come from the thread that made it."""

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        """Start the engine on a plain Hugging Face directory."""
        if not (model / "config.json").is_file():
            raise RolloutInputError(f"{model}: no config.json; expected a Hugging Face model directory")
        self._settings = settings
        self._first = model
        """Where the full weights were at the start."""
        self._full: Path | None = model
        """Where those are from that it holds now; None: it holds none."""
        self.on_cpu = _vllm_runs_on_cpu()
        self._llm = _start(model, settings, on_cpu=self.on_cpu)
        self._waiting: dict[str, Callable[[Any], None]] = {}
        self._submitted = 0
        self._adapters = 0
        self._adapter: LoRARequest | None = None

    def submit(self, request: SampleRequest, sampling: Sampling, done: Callable[[Any], None]) -> None:
        """Queue a prompt's K answers; sample k uses the request's seed + k. `step` calls `done` with vLLM's output."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._submitted += 1
        name = str(self._submitted)
        self._waiting[name] = done
        prompt = TokensPrompt(prompt_token_ids=request.prompt_ids)
        self._llm.llm_engine.add_request(name, prompt, parameters, lora_request=self._adapter)

    @property
    def busy(self) -> bool:
        """Whether a submitted request is not finished yet."""
        return bool(self._waiting)

    def step(self) -> None:
        """One step of the engine: a token for everything that runs, and new requests where there is room."""
        for output in self._llm.llm_engine.step():
            # vLLM appends characters of its own to the name it was given.
            name = output.request_id.partition("-")[0]
            if output.finished and name in self._waiting:
                self._waiting.pop(name)(output)

    def sample(self, requests: list[SampleRequest], sampling: Sampling, weight_version: str) -> list[SampledPrompt]:
        """K answers to each prompt, alone in the engine."""
        outputs: dict[int, Any] = {}
        for index, request in enumerate(requests):
            self.submit(request, sampling, partial(outputs.__setitem__, index))
        while self.busy:
            self.step()
        return [sampled_prompt(request, outputs[index], weight_version) for index, request in enumerate(requests)]

    def token_logps(self, sequences: list[list[int]]) -> list[list[float]]:
        """log p of every token of each sequence but the first, in nats. Raises RuntimeError while it samples."""
        from vllm import SamplingParams, TokensPrompt

        self._refuse_when_busy("compute log-probabilities")
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in sequences]
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False, lora_request=self._adapter)
        found: list[list[float]] = []
        for ids, output in zip(sequences, outputs, strict=True):
            positions: Any = output.prompt_logprobs
            found.append([position[token].logprob for token, position in zip(ids[1:], positions[1:], strict=True)])
        return found

    def reload(self, model: Path) -> None:
        """Hold the weights of another directory: full ones of the same architecture, or LoRA adapters on those that the
        engine was started with.

        After any exception the engine holds a mixture and must be thrown away, not retried.
        """
        self._refuse_when_busy("take other weights")
        if (model / ADAPTER_CONFIG).is_file():
            if self._full != self._first:
                self._take_full(self._first)
            self._take_adapter(model)
        else:
            self._drop_adapter()
            if not (self._settings.lora_rank and model == self._first == self._full):
                self._take_full(model)
        self._llm.reset_prefix_cache()

    def rest(self) -> None:
        """Free the GPU for others, by the settings' sleep level; nothing is to be asked before `wake`."""
        self._refuse_when_busy("rest")
        if self._settings.sleep_level and not self.on_cpu:
            self._llm.sleep(level=self._settings.sleep_level)

    def wake(self) -> bool:
        """Take the GPU back after `rest`; whether the weights are in place, or are to be loaded again."""
        if self.on_cpu or not self._settings.sleep_level:
            return True
        self._llm.wake_up()
        if self._settings.sleep_level < 2:
            return True
        self._full = None  # Dropped, those below an adapter too.
        return False

    def _refuse_when_busy(self, what: str) -> None:
        if self.busy:
            raise RuntimeError(f"the engine cannot {what} while {len(self._waiting)} prompts are in it")

    def transfer(self, call: str, *arguments: Any) -> None:
        """A step of vLLM's own weight transfer (`rollout.weight_transfer`); prefixes are forgotten at its end."""
        getattr(self._llm, call)(*arguments)
        if call == "finish_weight_update":
            self._llm.reset_prefix_cache()

    def _take_full(self, model: Path) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
        if self.on_cpu and _keeps_stale_heads():
            self._llm.apply_model(_repack_tied_head)
        self._full = model

    def _drop_adapter(self) -> None:
        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None

    def _take_adapter(self, directory: Path) -> None:
        """vLLM tells adapters apart by number, so each version gets a new one; the old one is dropped."""
        from vllm.lora.request import LoRARequest

        if not self._settings.lora_rank:
            raise RolloutInputError(
                f"{directory}: holds LoRA adapters, but the engine was started without; set their rank"
            )
        self._drop_adapter()
        self._adapters += 1
        self._adapter = LoRARequest(f"version-{self._adapters}", self._adapters, str(directory))
        self._llm.llm_engine.add_lora(self._adapter)


def sampled_prompt(request: SampleRequest, output: Any, weight_version: str) -> SampledPrompt:
    """vLLM's output of a request as plain values."""
    return SampledPrompt(
        prompt_id=request.prompt_id,
        prompt=request.prompt,
        prompt_ids=request.prompt_ids,
        seed=request.seed,
        weight_version=weight_version,
        completion=[answer.text for answer in output.outputs],
        completion_ids=[list(answer.token_ids) for answer in output.outputs],
        finish_reason=[str(answer.finish_reason) for answer in output.outputs],
    )


def _keeps_stale_heads() -> bool:
    """Whether this vLLM needs `_repack_tied_head`; on another one, the canary after each publish says if it does."""
    import vllm

    return vllm.__version__.startswith(STALE_HEADS)


def _repack_tied_head(model: Any) -> None:
    """Pack the LM head of tied embeddings anew from the weights that were just loaded."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(model.config, "tie_word_embeddings", False):
        head.quant_method.process_weights_after_loading(head)


def _vllm_runs_on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _settle_rotary_functions() -> None:
    """Call them on one number first, before the engine computes its table of rotary positions, which it keeps.

    oneMKL 2024 chooses its code in a function's first call, and where two threads make that call, one of them may
    compute its part with about twelve bits (pytorch/pytorch issue 188792).
    """
    import torch

    for function in (torch.cos, torch.sin):
        function(torch.full((1,), 0.5))


def _start(model: Path, settings: EngineSettings, *, on_cpu: bool) -> "LLM":
    from vllm import LLM

    arguments, reasons = vllm_arguments(model, settings, on_cpu=on_cpu)
    for reason in reasons:
        logger.info("engine: %s", reason)
    if on_cpu:
        _settle_rotary_functions()
    return LLM(**arguments)
