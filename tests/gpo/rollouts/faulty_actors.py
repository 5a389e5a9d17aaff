"""Actors for tests of the stream: they answer at once, and die, hang or fail where a prompt's text tells them to.

`die`, `hang`, `raise`, `full`, `oom` and `store` happen once (a file remembers), `poison` and `hungry` each time. In
place of models only: pool, stream, Ray and files are the run's own.
"""

import os
import time
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectStoreFullError

from gpo.files import write_json
from rollout.engine import SampleRequest, Sampling
from rollout.engine_settings import EngineSettings
from rollout.records import SampledPrompt
from rollout.sampler import SampleReport

ANSWER_BYTES = 1 << 20
"""What a shard of these samplers claims to take."""


AWAKE, BESIDE_AN_ENGINE = "an-engine-is-awake", "scored-beside-an-engine"
"""Files: there while the sampler has its device; there once a scorer worked meanwhile."""
SCORER_AWAKE, BESIDE_A_SCORER = "a-scorer-is-awake", "sampled-beside-a-scorer"
"""The same the other way round."""


def misbehave(folder: Path, text: str, role: str) -> None:
    """What the text of a prompt asks of this role: `die sampler`, `poison scorer`, `hang sampler`, `raise sampler`."""
    what, _, whom = text.partition(" ")
    if whom.partition(" ")[0] != role:
        return
    once = folder / f"happened-{text.replace(' ', '-')}"
    if what == "poison":
        die(folder, role)
    if what == "hungry":
        raise MemoryError
    if once.exists():
        return
    once.touch()
    if what == "die":
        die(folder, role)
    if what == "oom":
        raise MemoryError
    if what == "store":
        raise ObjectStoreFullError("the answers find no room")
    if what == "hang":
        time.sleep(1000)
    if what == "raise":
        raise RuntimeError("the engine is in pieces")
    if what == "full":
        raise OSError(28, "No space left on device")


def die(folder: Path, role: str) -> None:
    """End this process, which frees the device that it would have."""
    (folder / {"sampler": AWAKE, "scorer": SCORER_AWAKE}[role]).unlink(missing_ok=True)
    os._exit(1)


class FaultySampler:
    """Answers `K` times its own process id."""

    def __init__(self, settings: EngineSettings, logs: str) -> None:
        self._folder = Path()

    def load(self, model: str, version: str | None) -> str:
        """Holds any weights but those whose version is `broken`; notes each load."""
        self._folder = Path(model)
        (self._folder / f"load-{version}-{os.getpid()}").touch()
        (self._folder / AWAKE).touch()
        if version == "broken" or (version == "broken-once" and len(list(self._folder.glob(f"load-{version}-*"))) < 2):
            raise RuntimeError("half of the weights are in place")
        return version or "start"

    def sample(self, requests: list[SampleRequest], sampling: Sampling) -> tuple[list[SampledPrompt], SampleReport]:
        """Answers; the number of calls so far is on disk."""
        assert (self._folder / AWAKE).exists(), "an engine that rests is asked for answers"
        if (self._folder / SCORER_AWAKE).exists():
            (self._folder / BESIDE_A_SCORER).touch()
        for request in requests:
            misbehave(self._folder, request.prompt[0]["content"], "sampler")
        (self._folder / f"sampled-{time.monotonic_ns()}").touch()
        rows = [
            SampledPrompt(
                prompt_id=request.prompt_id,
                prompt=request.prompt,
                prompt_ids=request.prompt_ids,
                seed=request.seed,
                weight_version="start",
                completion=[f"{request.seed}/{k}" for k in range(sampling.samples)],
                completion_ids=[[k] for k in range(sampling.samples)],
                finish_reason=["stop"] * sampling.samples,
            )
            for request in requests
        ]
        answers = len(rows) * sampling.samples
        return rows, SampleReport(len(rows), answers, answers, ANSWER_BYTES, 0.0)

    def rest(self) -> None:
        """Frees the device that it would have."""
        (self._folder / AWAKE).unlink()

    def process(self) -> int:
        """Which process this is."""
        return os.getpid()


class FaultyScorer:
    """Writes what it was given as JSON."""

    def __init__(self, config: dict[str, Any], logs: str, threads: int) -> None:
        self._folder = Path(logs)

    def finish(self, samples: list[SampledPrompt], path: str, pause: float) -> int:
        """Write the shard; notes how many sampled shards were waiting meanwhile, and whether an engine was awake."""
        (self._folder / SCORER_AWAKE).touch()
        if (self._folder / AWAKE).exists():
            (self._folder / BESIDE_AN_ENGINE).touch()
        for sample in samples:
            misbehave(self._folder, sample.prompt[0]["content"], "scorer")
        time.sleep(pause)
        write_json(Path(path), {sample.prompt_id: sample.completion for sample in samples})
        return len(list(self._folder.glob("sampled-*")))

    def try_one(self, samples: list[SampledPrompt]) -> None:
        """As `finish`, and writes nothing; refuses a prompt without dying where its text says so."""
        (self._folder / SCORER_AWAKE).touch()
        for sample in samples:
            if sample.prompt[0]["content"] == "refused alone":
                raise ValueError("the judge is away")
            misbehave(self._folder, sample.prompt[0]["content"], "scorer")

    def rest(self) -> None:
        """Frees the device that it would have."""
        (self._folder / SCORER_AWAKE).unlink(missing_ok=True)
