"""The training stage as the driver sees it: start learners with Ray Train, follow their steps, bound the wait."""

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpo.cluster.fitting import Followed, fit, what_workers_say
from gpo.cluster.runtime import collect, deliver, learner_room, learner_scaling
from gpo.context import RunContext
from gpo.cpu import keeping_malloc
from gpo.errors import StageError
from gpo.files import append_json_line, json_lines, last_written, read_json, read_json_lines
from gpo.training.learner import LearnerTask, train_worker

logger = logging.getLogger(__name__)

LARGEST_WORKER_DEATHS = 2
COLLECT_EVERY_SECONDS = 10.0
"""Steps come from a learner on a node with a disk of its own this often."""
LARGEST_COLLECTIVE_SECONDS = 1800
"""What a learner waits for another one at most."""


def train(run: RunContext, iteration: int) -> dict[str, Any]:
    """Move the policy toward the targets of an iteration; returns what the journal keeps of the stage.

    Raises StageError when the learners keep dying, training itself fails, or nothing is heard of it in time.
    """
    started = time.monotonic()
    run.pool.rest()
    task = make_task(run, iteration)
    Path(task.training).mkdir(parents=True, exist_ok=True)
    logger.info("iteration %d: starting the learners; the reference's log-probabilities come first", iteration)
    deliver(Path(task.start), Path(task.anchor), Path(task.metrics), *map(Path, task.shards))
    try:
        _fit(run, task)
    finally:
        _record_lost(run, task)
    collect(Path(task.training), Path(task.checkpoint), Path(task.metrics), beside=Path(task.training) / "report.json")
    shutil.rmtree(_ray_folder(task), ignore_errors=True)
    report: dict[str, Any] = read_json(Path(task.training) / "report.json")
    return {"seconds": round(time.monotonic() - started, 3), **report}


def make_task(run: RunContext, iteration: int) -> LearnerTask:
    """What the learners of an iteration are told; paths are absolute, because Ray gives workers their own folder."""
    before = run.directory.training(iteration - 1) / "master"
    start = before if iteration > 1 else Path(run.config.policy.model)
    shards = sorted((run.directory.iteration(iteration) / "rollouts").glob("shard-*.parquet"))
    return LearnerTask(
        config=run.config.model_dump(mode="json"),
        iteration=iteration,
        policy=str(Path(run.config.policy.model).absolute()),
        start=str(start.absolute()),
        anchor=str(_anchor(run, iteration).absolute()),
        shards=[str(shard.absolute()) for shard in shards],
        training=str(run.directory.training(iteration).absolute()),
        checkpoint=str(run.directory.checkpoint(iteration).absolute()),
        metrics=str(run.directory.metrics.absolute()),
        logs=str(run.directory.logs.absolute()),
        threads=run.config.cluster.threads or int(run.config.cluster.learner_cpus),
    )


def _anchor(run: RunContext, iteration: int) -> Path:
    """The starting policy, or what the last iteration that moved the anchor published."""
    every = run.config.train.anchor_every
    moved = (iteration - 1) // every * every if every else 0
    return run.directory.checkpoint(moved) if moved else Path(run.config.policy.model)


def _ray_folder(task: LearnerTask) -> Path:
    return Path(task.training) / "ray"


def _lost_file(task: LearnerTask) -> Path:
    return Path(task.training) / "lost.jsonl"


def _record_lost(run: RunContext, task: LearnerTask) -> None:
    """Learners that died since the last look become lines of the journal."""
    for line in read_json_lines(_lost_file(task)):
        run.directory.record("lost", process="learner", iteration=task.iteration, **line)
    _lost_file(task).unlink(missing_ok=True)


def _torch_trainer(run: RunContext, task: LearnerTask) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig

    from gpo.cluster.lost_workers import LostWorkers, WorkersLostAtStart
    from gpo.cluster.torch_trainer import torch_trainer
    from gpo.training.rendezvous import Rendezvous

    scaling = learner_scaling(run.config)
    gpus = scaling["use_gpu"]
    seconds = int(min(run.config.cluster.wait_seconds, LARGEST_COLLECTIVE_SECONDS))
    settings: dict[str, Any] = {
        "name": f"iteration-{task.iteration:03d}-{time.time_ns()}",
        "storage_path": str(_ray_folder(task)),
        "failure_config": FailureConfig(max_failures=LARGEST_WORKER_DEATHS),
        "callbacks": [LostWorkers(_lost_file(task)), WorkersLostAtStart(_lost_file(task))],
        # Threads may spin while they wait: nothing samples or scores beside, and waking them cost 40 % of a step.
        "worker_runtime_env": {"env_vars": {} if gpus else keeping_malloc()},
    }
    return torch_trainer(run.config.cluster)(
        train_worker,
        train_loop_config=asdict(task),
        torch_config=Rendezvous(
            backend="nccl" if gpus else "gloo",
            timeout_s=seconds,
            folder=str(_ray_folder(task)) if run.config.cluster.address is None else None,
        ),
        scaling_config=ScalingConfig(**scaling),
        run_config=TrainRunConfig(**settings),
    )


def _fit(run: RunContext, task: LearnerTask) -> None:
    metrics = run.directory.metrics
    behind = metrics.stat().st_size if metrics.is_file() else 0
    looked = time.monotonic()

    def steps() -> list[dict[str, Any]]:
        nonlocal looked
        if time.monotonic() - looked > COLLECT_EVERY_SECONDS:
            collect(metrics, beside=metrics)
            deliver()  # A node that joined meanwhile may be where a learner starts again.
            looked = time.monotonic()
        return list(json_lines(metrics, behind))

    def failed(error: BaseException) -> Exception:
        return StageError(
            f"training of iteration {task.iteration} failed: {what_workers_say(error)}\n  details are in "
            f"{run.directory.logs}; start the same command again to go on"
        )

    followed = Followed(
        name=f"iteration {task.iteration}: train",
        steps=steps,
        sign=lambda: last_written(Path(task.training), _ray_folder(task)),
        missing=learner_room(),
        cluster=run.config.cluster,
        lost=lambda reason: append_json_line(_lost_file(task), {"reason": reason}),
    )
    fit(lambda: _torch_trainer(run, task), followed, failed)
