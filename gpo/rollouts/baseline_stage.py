"""The baseline stage: answers of older policies, or of the data set, to an iteration's prompts, embedded once."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import collect
from gpo.context import RunContext
from gpo.errors import StageError
from gpo.logs import Progress
from gpo.prompts import TokenizedPrompt
from gpo.rollouts.baselines import older_policies
from gpo.rollouts.jobs import Job, Shard
from gpo.rollouts.pool import Weights
from gpo.rollouts.scoring import BaselinePart
from gpo.rollouts.shards import give_up, missing_shards, shard_slices
from gpo.rollouts.stream import Stream
from rollout.records import SampledPrompt

logger = logging.getLogger(__name__)

ANSWERS = "answers"
"""Name of the folder with the data set's answers."""


def draw_baseline(run: RunContext, iteration: int) -> dict[str, Any]:
    """Write the baseline answers that are not there yet; returns what the journal keeps of the stage."""
    started = time.monotonic()
    shares = baseline_shares(run, iteration)
    versions = {}
    for name in shares:
        weights = None if name == ANSWERS else run.weights_after(int(name))
        _fill(run, iteration, name, weights)
        versions[name] = "data" if weights is None else weights.version or "start"
    return {
        "seconds": round(time.monotonic() - started, 3),
        "kind": run.config.baseline.kind,
        "shares": shares,
        "versions": versions,
    }


def baseline_shares(run: RunContext, iteration: int) -> dict[str, float]:
    """Folder below `baseline/` -> its share; empty for `self`."""
    if run.config.baseline.kind == "answers":
        return {ANSWERS: 1.0}
    policies = older_policies(run.config.baseline, iteration)
    return {f"{policy:03d}": weight for policy, weight in policies.items()}


def baseline_parts(run: RunContext, iteration: int, index: int) -> list[BaselinePart]:
    """The files that belong to a shard of rollouts."""
    return [
        BaselinePart(str(run.directory.baseline(iteration, name, index).absolute()), share)
        for name, share in baseline_shares(run, iteration).items()
    ]


def _fill(run: RunContext, iteration: int, name: str, weights: Weights | None) -> None:
    """All shards of one policy, or of the data set."""

    def path_of(index: int) -> Path:
        return run.directory.baseline(iteration, name, index)

    def shards() -> Iterator[Shard]:
        for index, path, prompts in missing_shards(run, iteration, path_of):
            if weights is None:
                yield Shard(index, [], path, given=[_given(item) for item in prompts])
            else:
                yield Shard(index, run.requests(prompts, iteration, f"baseline-{name}"), path)

    title = f"iteration {iteration}: baseline answers, {name}"
    progress = Progress(title, sum(1 for _ in shard_slices(run, iteration)), "shards")
    done = sum(path_of(index).exists() for index, _ in shard_slices(run, iteration))

    def finished(shard: Shard, answers: int) -> None:
        nonlocal done
        collect(Path(shard.path))
        if not Path(shard.path).exists():
            raise StageError(f"shard {shard.index} went with its node; start the same command again to draw it again")
        done += 1
        progress.update(done)

    samples = run.config.baseline.samples or run.config.rollout.samples
    job = Job(
        weights=weights,
        sampling=run.sampling(samples),
        finish=lambda scorer, shard: scorer.keep_baseline.remote(shard.samples(), shard.path),
        try_one=lambda scorer, shard, rows: scorer.try_to_embed.remote(rows),
        finished=finished,
        give_up=give_up(run, iteration, "baseline"),
    )
    Stream(run.pool, shards(), job).run()


def _given(item: TokenizedPrompt) -> SampledPrompt:
    """The data set's answers to a prompt, in the form of sampled ones."""
    answers = list(item.prompt.answers)
    return SampledPrompt(
        prompt_id=item.prompt.prompt_id,
        prompt=item.prompt.as_messages(),
        prompt_ids=list(item.prompt_ids),
        seed=0,
        weight_version="data",
        completion=answers,
        completion_ids=[[] for _ in answers],
        finish_reason=["stop"] * len(answers),
    )
