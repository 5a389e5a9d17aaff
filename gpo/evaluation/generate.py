"""`gpo generate`: answers of checkpoints to an evaluation set, in AlpacaEval's form.

Answers are drawn in chunks of prompts by one engine in a Ray actor, and every finished chunk is on disk: a start that
was stopped goes on behind it. Checkpoints of one architecture share the engine and only exchange its weights.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpo import interrupts
from gpo.cluster.runtime import end_actor, make_actor, ray_alone, relative, wait_for
from gpo.config import ClusterConfig
from gpo.cpu import actor_environment
from gpo.errors import StageError, UserError
from gpo.evaluation.generate_plan import GenerateRequest, Job, plan_jobs
from gpo.files import file_hash, write_json
from gpo.logs import Progress
from reward.errors import RewardInputError
from reward.part_file import Line, PartFile
from rollout.engine_settings import EngineSettings, cuda_devices_present
from rollout.records import SampledPrompt
from rollout.sampler import Sampler

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FIELDS = ("dataset", "instruction", "output", "generator", "messages")
"""Of a row of `model_outputs.json`; `messages` only where the prompt is more than one user turn."""


def generate(request: GenerateRequest) -> int:
    """Write a file for each model; returns the exit status. Raises UserError and StageError."""
    try:
        jobs = [job for job in plan_jobs(request) if not job.finished()]
        if jobs:
            _run(jobs, request)
    except RewardInputError as error:
        raise UserError(str(error)) from None
    logger.info("answers are in %s", ", ".join(relative(path) for path in request.paths().values()))
    return 0


def _run(jobs: list[Job], request: GenerateRequest) -> None:
    with ray_alone(ClusterConfig()):
        engine = _Engine(request)
        try:
            for job in jobs:
                _answer(job, request, engine)
        except (KeyboardInterrupt, UserError, StageError, RewardInputError):
            raise
        except Exception as error:
            if interrupts.received:
                raise KeyboardInterrupt from error
            reason = str(error).strip().splitlines()
            raise StageError(
                f"generating for {job.generator} failed: {type(error).__name__}: {reason[-1] if reason else ''}; what "
                "is finished is kept, start the same command again to go on"
            ) from error


class _Engine:
    """One sampler actor, started anew where the next model is of another make."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._actor: Any = None
        self._make: tuple[Any, ...] | None = None

    def holding(self, job: Job) -> Any:
        """The actor with the job's weights."""
        make = (job.architecture, job.dtype, job.max_model_len)
        if self._make != make:
            self.end()
            threads = len(os.sched_getaffinity(0))
            settings = EngineSettings(
                max_model_len=job.max_model_len,
                dtype=job.dtype,
                kv_cache_gib=self._request.kv_cache_gib,
                tensor_parallel=self._request.tensor_parallel,
                threads=threads,
            )
            # Over several GPUs vLLM's own Ray workers take them, and this actor none.
            gpus = 1 if cuda_devices_present() and self._request.tensor_parallel == 1 else 0
            environment = actor_environment()
            self._actor = make_actor(Sampler, settings, threads=threads, gpus=gpus, environment=environment)
            self._make = make
        load = self._actor.load.remote(str(job.model.absolute()), job.version)
        wait_for(load, self._request.wait_seconds, f"an engine that loads {job.model}")
        return self._actor

    def end(self) -> None:
        """Give the memory back."""
        if self._actor is not None:
            end_actor(self._actor)
            self._actor = None


def _answer(job: Job, request: GenerateRequest, engine: _Engine) -> None:
    started = time.monotonic()
    with PartFile(job.path, job.made_from, _join(job, request)) as part:
        done = sum(1 for _ in part.lines())
        if done:
            logger.info("%s: going on after %d answers of an earlier start", job.generator, done)
        progress = Progress(f"{job.generator}: generate", len(job.requests), "prompts")
        actor: Any = engine.holding(job) if done < len(job.requests) else None
        for start in range(done, len(job.requests), request.chunk_prompts):
            chunk = slice(start, start + request.chunk_prompts)
            sampled = actor.sample.remote(job.requests[chunk], request.sampling())
            rows, _ = wait_for(sampled, request.wait_seconds, f"an engine that answers for {job.generator}")
            part.append([_line(job, place, row) for place, row in enumerate(rows, start=start)])
            progress.update(min(chunk.stop, len(job.requests)))
        part.finish()
    logger.info("%s: %d answers in %.0f s", relative(job.path), len(job.requests), time.monotonic() - started)


def _line(job: Job, place: int, row: SampledPrompt) -> Line:
    asked = job.prompts[place]
    line: Line = {
        "dataset": asked.dataset,
        "instruction": asked.instruction,
        "output": row.completion[0].strip(),
        "generator": job.generator,
        "tokens": len(row.completion_ids[0]),
        "finish_reason": row.finish_reason[0],
    }
    return line | ({"messages": asked.messages} if asked.messages else {})


def _join(job: Job, request: GenerateRequest) -> Callable[[Path, Iterator[Line]], None]:
    """The list that AlpacaEval reads, and the record of how it came about."""

    def join(path: Path, lines: Iterator[Line]) -> None:
        rows = list(lines)
        write_json(path, [{field: row[field] for field in FIELDS if field in row} for row in rows])
        record = {
            "format_version": FORMAT_VERSION,
            "generator": job.generator,
            "model": str(job.model),
            "weight_version": job.version,
            "prompts": request.prompts,
            "sampling": asdict(request.sampling()),
            "seed": request.seed,
            "system": request.system,
            "made_from": job.made_from,
            "answers": len(rows),
            "answers_sha256": file_hash(path),
            "tokens": sum(row["tokens"] for row in rows),
            "cut_at_the_token_limit": sum(row["finish_reason"] == "length" for row in rows),
        }
        # The answers get their name only after this; a kill between the two leaves a hash that is not theirs.
        write_json(job.record, record)

    return join
