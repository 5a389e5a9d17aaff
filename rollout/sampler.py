"""The Ray face of the engine: an actor that holds one version of the policy and answers requests.

Rows go from here to the scorer through the object store; the driver only sees counts and timings.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from rollout.engine import EngineSettings, PolicyEngine, SampleRequest, Sampling, prepare_environment
from rollout.records import SampledPrompt
from rollout.weights import verify_published


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What the driver learns of a sampled shard."""

    prompts: int
    answers: int
    tokens: int
    ended: int
    """Answers that the policy ended itself."""
    seconds: float


class Sampler:
    """One engine. Started empty; `load` brings the first weights and every later version."""

    def __init__(self, settings: EngineSettings) -> None:
        prepare_environment(settings)
        self._settings = settings
        self._engine: PolicyEngine | None = None
        self._version = ""

    def load(self, model: str, version: str | None) -> str:
        """Hold the weights of a directory.

        A published directory (version given) must carry its marker, with that version and an agreeing content hash.
        After an exception this actor must be rebuilt: its engine may hold a mixture.
        """
        directory = Path(model)
        if version is not None:
            marker = verify_published(directory)
            if marker.version != version:
                raise ValueError(f"{directory}: holds version {marker.version}, expected {version}")
        if self._engine is None:
            self._engine = PolicyEngine(directory, self._settings)
        else:
            self._engine.reload(directory)
        self._version = version or "start"
        return self._version

    def sample(self, requests: list[SampleRequest], sampling: Sampling) -> tuple[list[SampledPrompt], SampleReport]:
        """K answers to each prompt. Call with `num_returns=2`, so that only the report travels to the driver."""
        started = time.perf_counter()
        rows = self._loaded().sample(requests, sampling, self._version)
        report = SampleReport(
            prompts=len(rows),
            answers=sum(len(row.completion) for row in rows),
            tokens=sum(len(ids) for row in rows for ids in row.completion_ids),
            ended=sum(reason == "stop" for row in rows for reason in row.finish_reason),
            seconds=time.perf_counter() - started,
        )
        return rows, report

    def answer_logps(self, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        """The engine's log p of each answer token, for the canary."""
        found = self._loaded().token_logps([[*prompt, *answer] for prompt, answer in rows])
        return [logps[len(prompt) - 1 :] for (prompt, _), logps in zip(rows, found, strict=True)]

    def _loaded(self) -> PolicyEngine:
        if self._engine is None:
            raise RuntimeError("no weights are loaded yet; call load first")
        return self._engine
