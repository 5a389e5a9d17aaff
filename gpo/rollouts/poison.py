"""Which prompt of a shard ends the process that works on it: each is tried alone, and the guilty are left out.

Rare and slow on purpose: nothing else is in flight meanwhile, so that a death has one cause.
"""

import logging
from collections.abc import Callable
from typing import Any

from gpo.cluster.runtime import wait_for
from gpo.errors import StageError, reason_of
from gpo.rollouts.pool import Pool, Worker
from gpo.rollouts.stream import DEATHS_BEFORE_ISOLATION, Job, Shard

logger = logging.getLogger(__name__)

TRIES = 2
"""A prompt is given up after ending this many processes alone: one death may have another cause."""


def leave_out_poison(pool: Pool, job: Job, shard: Shard) -> None:
    """Take the prompts that kill out of a shard and report each to `job.give_up`.

    Raises StageError when processes die of the shard again although no prompt of it kills alone.
    """
    logger.warning("shard %d: its processes keep dying; each of its prompts is tried alone", shard.index)
    shard.taken_apart += 1
    if shard.taken_apart > TRIES:
        raise StageError(
            f"shard {shard.index}: its processes die again and again, but no single prompt is the cause; if memory is "
            "short, lower rollout.engine.max_sequences or rollout.shard_prompts, then start the same command again"
        )
    found: dict[str, str] = {}
    if shard.deaths >= DEATHS_BEFORE_ISOLATION:
        found |= {prompt: "sampling" for prompt in _killed_samplers(pool, job, shard)}
    if shard.scorer_deaths >= DEATHS_BEFORE_ISOLATION:
        found |= {prompt: "scoring" for prompt in _killed_scorers(pool, job, shard, set(found))}
    for prompt, what in found.items():
        logger.warning(
            "shard %d: prompt %s ends the process that does its %s; it is left out", shard.index, prompt, what
        )
        job.give_up(shard, prompt, what)
    shard.requests = [request for request in shard.requests if request.prompt_id not in found]
    if shard.given is not None:
        shard.given = [sample for sample in shard.given if sample.prompt_id not in found]
    shard.deaths = shard.scorer_deaths = 0


def _killed_samplers(pool: Pool, job: Job, shard: Shard) -> list[str]:
    def sample(request: Any) -> Callable[[Worker], Any]:
        return lambda worker: worker.actor.sample.options(num_returns=2).remote([request], job.sampling)[1]

    return [request.prompt_id for request in shard.requests if not _survives(pool, job, "sampler", sample(request))]


def _killed_scorers(pool: Pool, job: Job, shard: Shard, known: set[str]) -> list[str]:
    """Each prompt's answers are drawn again and scored alone."""
    guilty = []
    for sample in shard.given or shard.requests:
        if sample.prompt_id not in known and not _survives(pool, job, "scorer", _score_one(pool, job, shard, sample)):
            guilty.append(sample.prompt_id)
    return guilty


def _score_one(pool: Pool, job: Job, shard: Shard, sample: Any) -> Callable[[Worker], Any]:
    rows: Any = [sample]
    if job.weights is not None:
        sampler = pool.samplers(job.weights)[0]
        rows, _ = sampler.sample.options(num_returns=2).remote([sample], job.sampling)
    return lambda worker: job.try_one(worker.actor, shard, rows)


def _survives(pool: Pool, job: Job, role: str, work: Callable[[Worker], Any]) -> bool:
    """Whether a process is still there after this work; a dead one is thrown away."""
    import ray

    for _ in range(TRIES):
        if role == "sampler" and job.weights is not None:
            pool.samplers(job.weights)
        worker = pool.workers(role)[0]
        try:
            wait_for(work(worker), pool.config.cluster.wait_seconds, f"a {role} that tries a prompt alone")
            return True
        except (ray.exceptions.RayError, StageError) as error:
            logger.warning("a %s was lost: %s", role, reason_of(error))
            pool.lose(worker, reason_of(error))
    return False
