"""Which prompt of a shard ends the process that works on it: each is tried alone, and the guilty are left out.

Rare and slow on purpose: nothing else is in flight meanwhile, so that a death has one cause.
"""

import logging
from typing import Any

from gpo.cluster.runtime import wait_for
from gpo.errors import StageError, reason_of
from gpo.rollouts.jobs import DEATHS_BEFORE_ISOLATION, Job, Shard, scoring_failed
from gpo.rollouts.pool import Pool, Worker

logger = logging.getLogger(__name__)

TRIES = 2
"""A prompt is given up after ending this many processes alone: one death may have another cause."""


def leave_out_poison(pool: Pool, job: Job, shard: Shard) -> None:
    """Take the prompts that kill out of a shard and report each to `job.give_up`.

    Raises StageError when processes die of the shard again although no prompt of it kills alone, or when a scorer
    refuses a prompt without dying of it.
    """
    logger.warning("shard %d: its processes keep dying; each of its prompts is tried alone", shard.index)
    shard.taken_apart += 1
    if shard.taken_apart > TRIES:
        raise StageError(
            f"shard {shard.index}: its processes die again and again, but no single prompt is the cause; if memory is "
            "short, lower rollout.engine.max_sequences or rollout.shard_prompts, then start the same command again"
        )
    found: dict[str, str] = {}
    for prompt in shard.requests if shard.given is None else shard.given:
        deadly = _deadly_work(pool, job, shard, prompt)
        if deadly is not None:
            found[prompt.prompt_id] = deadly
            logger.warning(
                "shard %d: prompt %s ends the process that does its %s; it is left out",
                shard.index, prompt.prompt_id, deadly,
            )  # fmt: skip
            job.give_up(shard, prompt.prompt_id, deadly)
    shard.requests = [request for request in shard.requests if request.prompt_id not in found]
    if shard.given is not None:
        shard.given = [sample for sample in shard.given if sample.prompt_id not in found]
    shard.deaths = shard.scorer_deaths = 0


def _deadly_work(pool: Pool, job: Job, shard: Shard, prompt: Any) -> str | None:
    """`sampling` or `scoring`, where that ends its process, for a request or an answered prompt; None for neither."""
    rows: Any = [prompt]
    if job.weights is not None:
        rows = _draw_alone(pool, job, prompt)
        if rows is None:
            return "sampling"
    if shard.scorer_deaths < DEATHS_BEFORE_ISOLATION or _scores_alone(pool, job, shard, rows):
        return None
    return "scoring"


def _draw_alone(pool: Pool, job: Job, request: Any) -> Any:
    """Reference to the answers to one prompt; None when each sampler dies of it."""
    assert job.weights is not None
    for _ in range(TRIES):
        pool.samplers(job.weights)
        worker = pool.holding(job.weights)[0]
        rows, report = worker.actor.sample.options(num_returns=2).remote([request], job.sampling)
        if _survives(pool, worker, report):
            return rows
    return None


def _scores_alone(pool: Pool, job: Job, shard: Shard, rows: Any) -> bool:
    for _ in range(TRIES):
        pool.scorers()
        worker = pool.workers("scorer")[0]
        if _survives(pool, worker, job.try_one(worker.actor, shard, rows)):
            return True
    return False


def _survives(pool: Pool, worker: Worker, reference: Any) -> bool:
    """Whether a process is still there after this work; a dead one is thrown away.

    A scorer that raises is not dead: its judge may be away, which is no prompt's fault. Raises StageError then.
    """
    import ray

    try:
        wait_for(reference, pool.config.cluster.wait_seconds, f"a {worker.role} that tries a prompt alone")
        return True
    except (ray.exceptions.RayError, StageError) as error:
        refused = isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error.cause, MemoryError)
        if refused and worker.role == "scorer":
            raise scoring_failed(error) from error
        logger.warning("a %s was lost: %s", worker.role, reason_of(error))
        pool.lose(worker, reason_of(error))
        return False
