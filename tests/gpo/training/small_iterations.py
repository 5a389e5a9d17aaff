"""Iterations of a tiny run's learner, in the process of the test, on shards that are written by hand."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gpo.context import RunContext
from gpo.files import read_json, read_json_lines
from gpo.journal import RunDirectory
from gpo.training.forward import token_logps
from gpo.training.learner import LearnerTask, train_worker
from gpo.training.log_probs import add_log_prob_head
from gpo.training.stage import make_task
from rollout.records import RolloutRow, write_shard
from rollout.weights import verify_published
from tests.gpo.small_runs import run_config
from tests.gpo.training.small_training import make_rows
from tests.rollout.test_records import make_row

PROMPTS, SAMPLES = 4, 4
TRAIN: dict[str, Any] = {"learning_rate": 1e-3, "batch_prompts": 2, "epochs": 2}
ONE_STEP: dict[str, Any] = {**TRAIN, "batch_prompts": PROMPTS, "epochs": 1, "warmup_ratio": 0.0}
"""All rows in one step, so that its loss is a mean over all of them."""


def make_run(folder: Path, **changes: Any) -> RunContext:
    """Of a run only what its learners are told by: the settings, and the directory."""
    nothing: Any = None
    settings = {"iterations": 3, "rollout": {"samples": SAMPLES}, "cluster": {"threads": 1}, **changes}
    return RunContext(run_config(folder, **settings), RunDirectory(folder / "run"), nothing, nothing, [], [])


def make_rollouts(seed: int = 0, scale: float = 2.0) -> list[RolloutRow]:
    """A row a prompt; targets in nats average to 0 over its answers and rank them as the scores do."""
    answers = make_rows(PROMPTS, SAMPLES, seed=seed, scale=scale)
    rows = []
    for first in range(0, len(answers), SAMPLES):
        own = answers[first : first + SAMPLES]
        targets = [answer["target"] for answer in own]
        rows.append(
            make_row(
                prompt_id=own[0]["prompt_id"],
                prompt_ids=own[0]["prompt_ids"],
                completion=["text"] * SAMPLES,
                completion_ids=[answer["completion_ids"] for answer in own],
                finish_reason=["stop"] * SAMPLES,
                embedding=None,
                score=[target / 10 for target in targets],
                target=targets,
                table=[[0.0] * SAMPLES] * SAMPLES,
                left_out=[""] * SAMPLES,
            )
        )
    return rows


def learn(run: RunContext, iteration: int, rows: list[RolloutRow]) -> LearnerTask:
    """One iteration as a worker does it, from two shards to the checkpoint."""
    for number, share in enumerate((rows[:1], rows[1:])):
        write_shard(run.directory.shard(iteration, number), share)
    task = make_task(run, iteration)
    Path(task.training).mkdir(parents=True, exist_ok=True)
    with own_log():
        train_worker(asdict(task))
    return task


@contextmanager
def own_log() -> Iterator[None]:
    """A worker opens a log file of its process, which here is that of the tests."""
    root, raises = logging.getLogger(), logging.raiseExceptions
    before = list(root.handlers)
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()


def iterate(
    folder: Path, policy: Path, iterations: int = 1, rows: list[RolloutRow] | None = None, **train: Any
) -> tuple[RunContext, list[LearnerTask]]:
    """So many iterations over the same answers, with settings of the training other than those of `TRAIN`."""
    run = make_run(folder, policy={"model": str(policy)}, train={**TRAIN, **train})
    return run, [learn(run, iteration, rows or make_rollouts()) for iteration in range(1, iterations + 1)]


def published(task: LearnerTask) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint that is whole."""
    verify_published(Path(task.checkpoint))
    return load_file(Path(task.checkpoint) / "model.safetensors")


def largest_gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between any two weights of a name."""
    assert one.keys() == other.keys() and one
    return max((one[name] - other[name]).abs().max().item() for name in one)


def report_of(task: LearnerTask) -> dict[str, Any]:
    report: dict[str, Any] = read_json(Path(task.training) / "report.json")
    return report


def steps_of_iteration(run: RunContext, iteration: int) -> list[dict[str, Any]]:
    """The lines that its learner wrote into the run's metrics."""
    return [line for line in read_json_lines(run.directory.metrics) if line["iteration"] == iteration]


def logps_of(directory: Path, rows: list[RolloutRow]) -> torch.Tensor:
    """log p [answers] in nats of all answers of the rows under a plain model directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    add_log_prob_head(model)
    ids = [(row.prompt_ids, answer) for row in rows for answer in row.completion_ids]
    return torch.stack([logps.sum() for logps in token_logps(model, ids, "float32")])
