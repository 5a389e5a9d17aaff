"""The Ray face of the engine: an actor that holds one version of the policy and answers requests.

Rows go from here to the scorer through the object store; the driver only sees counts and timings. Calls run as
coroutines of one event loop, whose thread owns the engine: a call that comes while another is at work adds its
prompts to the running batch, so that the engine stays full when the last long answers of a shard are left.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.cores import claim_cores
from rollout.engine import PolicyEngine, SampleRequest, Sampling, sampled_prompt
from rollout.engine_settings import EngineSettings, cuda_devices_present, prepare_environment
from rollout.records import SampledPrompt
from rollout.weight_transfer import WeightReceiver
from rollout.weights import ADAPTER, verify_published


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What the driver learns of a sampled shard."""

    prompts: int
    answers: int
    tokens: int
    size_bytes: int
    """About what the rows take on their way to the scorer."""
    seconds: float
    """Of the engine's time. Shards that are sampled side by side share it: all together they add up to the clock's."""


class Sampler(WeightReceiver):
    """One engine. Started empty; `load` brings the first weights and every later version."""

    def __init__(self, settings: EngineSettings) -> None:
        self._cores = [] if cuda_devices_present() else claim_cores(settings.threads)
        prepare_environment(settings, self._cores)
        self._settings = settings
        self._engine: PolicyEngine | None = None
        self._version = ""
        self._held: tuple[str, str | None] | None = None
        """What `load` was last asked for, once it is in place."""
        self._resting = False
        self._pump: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[Any]] = set()
        self._reported = 0.0
        """When the last shard was done."""

    async def load(self, model: str, version: str | None) -> str:
        """Hold the weights of a directory, and wake the engine where it rests.

        A published directory (version given) must carry its marker, with that version and an agreeing content hash.
        After an exception this actor must be rebuilt: its engine may hold a mixture.
        """
        if self._wake() and self._held == (model, version):
            return self._version
        directory = self._form_of(Path(model))
        if version is not None:
            marker = verify_published(directory)
            if marker.version != version:
                raise ValueError(f"{directory}: holds version {marker.version}, expected {version}")
        self._held, self._version = None, ""
        # Adapters belong to the policy, so an engine that takes them starts with it whatever is asked for first.
        start = Path(self._settings.lora_base) if self._settings.lora_rank else directory
        started = self._engine is None
        if self._engine is None:
            self._engine = PolicyEngine(start, self._settings)
        if not (started and start == directory):
            self._engine.reload(directory)
        self._held, self._version = (model, version), version or "start"
        return self._version

    def _form_of(self, directory: Path) -> Path:
        """The adapters of a published directory, where it has them and this engine takes them; else itself."""
        adapter = directory / ADAPTER
        return adapter if self._settings.lora_rank and adapter.is_dir() else directory

    async def rest(self) -> None:
        """Free the GPU for others; the next `load` takes it back. Samples in flight are to be waited for before."""
        self._loaded().rest()
        self._resting = True

    def _wake(self) -> bool:
        """Whether the engine rested and has its weights back."""
        if not self._resting:
            return False
        self._resting = False
        return self._loaded().wake()

    async def sample(
        self, requests: list[SampleRequest], sampling: Sampling
    ) -> tuple[list[SampledPrompt], SampleReport]:
        """K answers to each prompt. Call with `num_returns=2`, so that only the report travels to the driver."""
        started = time.perf_counter()
        outputs = await asyncio.gather(*(self._answer(request, sampling) for request in requests))
        rows = [sampled_prompt(*pair, self._version) for pair in zip(requests, outputs, strict=True)]
        began, self._reported = max(started, self._reported), time.perf_counter()
        return rows, report_of(rows, self._reported - began)

    def _answer(self, request: SampleRequest, sampling: Sampling) -> "asyncio.Future[Any]":
        """Submit at once; the future is done when the engine is."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._loaded().submit(request, sampling, future.set_result)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run_engine())
        return future

    async def _run_engine(self) -> None:
        """Step until nothing is left; between steps other calls may add theirs."""
        engine = self._loaded()
        try:
            while engine.busy:
                engine.step()
                await asyncio.sleep(0)
        except Exception as error:  # every waiting call must learn that the engine is gone
            for future in list(self._waiting):
                future.set_exception(error)

    async def answer_logps(self, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        """The engine's log p of each answer token, for the canary."""
        found = self._loaded().token_logps([[*prompt, *answer] for prompt, answer in rows])
        return [logps[len(prompt) - 1 :] for (prompt, _), logps in zip(rows, found, strict=True)]

    async def cores(self) -> list[int]:
        """The cores that belong to this engine alone; empty when it is not bound."""
        return self._cores

    def _loaded(self) -> PolicyEngine:
        if self._engine is None:
            raise RuntimeError("no weights are loaded yet; call load first")
        return self._engine


def report_of(rows: list[SampledPrompt], seconds: float) -> SampleReport:
    """Counts of a sampled shard; ids are counted with 4 bytes, text with its length."""
    tokens = sum(len(ids) for row in rows for ids in row.completion_ids)
    text = sum(len(answer) for row in rows for answer in row.completion)
    return SampleReport(
        prompts=len(rows),
        answers=sum(len(row.completion) for row in rows),
        tokens=tokens,
        size_bytes=4 * tokens + text + sum(4 * len(row.prompt_ids) for row in rows),
        seconds=seconds,
    )
