"""Publish: engines take the new weights, and the canary proves that they did."""

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpo.context import RunContext
from gpo.errors import StageError
from gpo.files import read_json, write_json
from rollout.canary import Gap, canary_rows, gap, judge, movement
from rollout.weights import publish_adapter

logger = logging.getLogger(__name__)


def measure_noise_floor(run: RunContext, iteration: int) -> dict[str, Any]:
    """Before iteration 1 (`iteration` 0): how far trainer and engine differ on the same weights.

    Raises StageError when that is more than noise: then they do not compute the same model at all.
    """
    started = time.monotonic()
    logger.info("canary: starting the trainer's forward and the engines, about half a minute")
    run.forward.start()
    run.pool.workers("scorer")  # They import what they need while the engines start, which takes longer.
    engines = _engine_logps(run, iteration)
    trainer = _start_logps(run)
    floor = max((gap(trainer, engine) for engine in engines), key=lambda one: one.mean)
    limit = run.config.canary.largest_noise_nats
    if floor.mean > limit:
        raise StageError(
            f"canary: on the very same weights trainer and engine differ by {floor.mean:.3f} nats a token, beyond "
            f"canary.largest_noise_nats = {limit:g}; try policy.attention=eager or policy.dtype=float32"
        )
    write_json(run.directory.floor(iteration), {"floor": asdict(floor), "answer_logps": trainer})
    logger.info("canary: the noise floor is %.2g nats a token (largest %.2g)", floor.mean, floor.largest)
    return {"seconds": round(time.monotonic() - started, 3), "floor": asdict(floor)}


def publish(run: RunContext, iteration: int) -> dict[str, Any]:
    """Load an iteration's checkpoint into the engines, compare with the trainer's own numbers, drop what is over.

    Raises StageError when the engine does not hold what was trained.
    """
    started = time.monotonic()
    if run.config.rollout.engine.adapters:
        publish_adapter(run.directory.training(iteration) / "master", run.directory.checkpoint(iteration))
    weights = run.weights_after(iteration)
    trainer = _trainer_logps(run, iteration)
    floor_file = read_json(run.directory.floor(0))
    before = floor_file["answer_logps"] if iteration == 1 else _trainer_logps(run, iteration - 1)
    floor, factor = Gap(**floor_file["floor"]), run.config.canary.factor
    verdicts = [
        judge(gap(trainer, engine), floor, gap(trainer, before), movement(before, trainer, engine, floor), factor)
        for engine in _engine_logps(run, iteration)
    ]
    verdict = next((one for one in verdicts if not one.accepted), verdicts[0])
    logger.info("%s", verdict.sentence())
    if not verdict.accepted:
        raise StageError(
            f"iteration {iteration}: the engine does not hold the published weights ({verdict.sentence()}). "
            "Start the same command again: engines are rebuilt from the checkpoint"
        )
    _drop_masters_before(run, iteration)
    return {"seconds": round(time.monotonic() - started, 3), "version": weights.version, "canary": asdict(verdict)}


def _trainer_logps(run: RunContext, iteration: int) -> list[list[float]]:
    values = read_json(run.directory.canary(iteration))
    found: list[list[float]] = values["answer_logps"]
    return found


def _engine_logps(run: RunContext, iteration: int) -> list[list[list[float]]]:
    """The canary's numbers of every engine: one that missed an update must not hide behind the others."""
    from reward.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(Path(run.config.policy.model), run.config.policy.trust_remote_code)
    rows = canary_rows(tokenizer)
    found: list[list[list[float]]] = run.pool.ask_samplers(
        run.weights_after(iteration), lambda sampler: sampler.answer_logps.remote(rows), "the canary"
    )
    return found


def _start_logps(run: RunContext) -> list[list[float]]:
    """The trainer's numbers for the policy before any training."""
    start = run.weights_after(0).directory
    logps: list[list[float]] = run.forward.ask(
        lambda actor: actor.canary_logps.remote(start), "the canary's own forward"
    )
    return logps


def _drop_masters_before(run: RunContext, iteration: int) -> None:
    """Master weights of the iteration before are needed by nobody once this one is published."""
    shutil.rmtree(run.directory.training(iteration - 1) / "master", ignore_errors=True)
