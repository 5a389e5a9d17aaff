"""Generate and score: the prompts of an iteration become shards of rows with targets."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import collect, deliver
from gpo.config import RunConfig
from gpo.context import RunContext
from gpo.errors import StageError
from gpo.logs import Progress
from gpo.rollouts.baseline_stage import baseline_parts
from gpo.rollouts.jobs import Job, Shard
from gpo.rollouts.shards import give_up, missing_shards, shard_numbers, shard_slices
from gpo.rollouts.stream import Stream
from gpo.rollouts.summary import ShardSummary, summarise_file
from rollout.sampler import SampleReport

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """Sums over an iteration's shards; no list grows with the number of prompts."""

    prompts: int = 0
    answers: int = 0
    tokens: int = 0
    range_nats: tuple[float, float] = (float("inf"), -float("inf"))
    cyclic: float = 0.0
    """Sum over the shards of their share of cycles times their prompts."""
    judged_prompts: int = 0
    """Of the shards that have such a share."""
    left_out: Counter[str] = field(default_factory=Counter)
    sampled_tokens: int = 0
    sample_seconds: float = 0.0

    def add(self, scored: ShardSummary, sampled: SampleReport | None = None) -> None:
        """A finished shard; `sampled` None: it was finished by an earlier start."""
        self.prompts += scored.prompts
        self.answers += scored.answers
        self.tokens += scored.tokens
        low, high = self.range_nats
        self.range_nats = (min(low, scored.smallest_target), max(high, scored.largest_target))
        if scored.cyclic_share is not None:
            self.cyclic += scored.cyclic_share * scored.prompts
            self.judged_prompts += scored.prompts
        self.left_out.update(scored.left_out)
        if sampled is not None:
            self.sampled_tokens += sampled.tokens
            self.sample_seconds += sampled.seconds


def generate_and_score(run: RunContext, iteration: int) -> dict[str, Any]:
    """Write the shards of an iteration that are not there yet; returns what the journal keeps of the stage."""
    started = time.monotonic()
    deliver(run.directory.iteration(iteration) / "baseline")
    totals = _found_totals(run, iteration)
    progress = Progress(f"iteration {iteration}: generate and score", len(run.prompts[iteration - 1]), "prompts")
    progress.update(totals.prompts)
    begun = time.monotonic()

    def shards() -> Iterator[Shard]:
        for index, path, prompts in missing_shards(run, iteration, lambda index: run.directory.shard(iteration, index)):
            yield Shard(index, run.requests(prompts, iteration, "rollout"), path)

    def finished(shard: Shard, scored: ShardSummary) -> None:
        sampled = shard.report
        assert sampled is not None  # It was sampled before it was scored.
        collect(Path(shard.path))
        if not Path(shard.path).exists():
            raise StageError(f"shard {shard.index} went with its node; start the same command again to draw it again")
        run.directory.record(
            "shard",
            iteration=iteration,
            shard=shard.index,
            tokens=sampled.tokens,
            sample_seconds=round(sampled.seconds, 3),
            score_seconds=round(scored.seconds, 3),
        )
        check_targets(scored, run.config)
        totals.add(scored, sampled)
        progress.update(totals.prompts, f"{totals.sampled_tokens / (time.monotonic() - begun):.0f} tokens/s")

    job = Job(
        weights=run.weights_after(iteration - 1),
        sampling=run.sampling(run.config.rollout.samples),
        finish=lambda scorer, shard: scorer.score_shard.remote(
            shard.samples(), shard.path, baseline_parts(run, iteration, shard.index)
        ),
        try_one=lambda scorer, shard, rows: scorer.try_to_score.remote(
            rows, baseline_parts(run, iteration, shard.index)
        ),
        finished=finished,
        give_up=give_up(run, iteration, "generate"),
    )
    Stream(run.pool, shards(), job).run()
    return _stage_result(totals, time.monotonic() - started)


def _found_totals(run: RunContext, iteration: int) -> Totals:
    """What earlier starts finished. A file that exists is whole; its line may be missing, when the driver died."""
    totals = Totals()
    recorded = shard_numbers(run.directory, iteration)
    found = 0
    for index, _ in shard_slices(run, iteration):
        path = Path(run.directory.shard(iteration, index))
        if path.exists():
            found += 1
            try:
                summary = summarise_file(path)
            except ValueError as error:
                raise StageError(f"{error}; remove it and start the same command again: it is drawn anew") from None
            check_targets(summary, run.config)
            totals.add(summary)
            if index not in recorded:
                run.directory.record("shard", iteration=iteration, shard=index, found=True)
    if found:
        logger.info("iteration %d: %d shards are there already", iteration, found)
    return totals


def check_targets(summary: ShardSummary, config: RunConfig) -> None:
    """Refuse targets beyond what the config calls sane; raises StageError with the range and what to change."""
    if config.train.standardise is not None:
        return  # The trainer scales them to a size that the config names, so theirs says nothing of what is trained on.
    target = config.target
    largest = max(abs(summary.smallest_target), abs(summary.largest_target))
    if largest > target.largest_nats:
        raise StageError(
            f"targets reach {largest:.1f} nats, beyond target.largest_nats = {target.largest_nats:g}: log-ratios of "
            f"that size destroy a policy. Raise target.beta (now {target.beta:g}), set target.clamp, or raise "
            "target.largest_nats if you mean it; these make another run, so add --fresh or another --run-dir"
        )


def _stage_result(totals: Totals, seconds: float) -> dict[str, Any]:
    if not totals.answers:
        raise StageError("no prompt is left: each of them ended the process that worked on it; see the journal")
    result = {
        "seconds": round(seconds, 3),
        "prompts": totals.prompts,
        "answers": totals.answers,
        "mean_length_tokens": totals.tokens / totals.answers,
        "target_range_nats": list(totals.range_nats),
        "cyclic_share": totals.cyclic / totals.judged_prompts if totals.judged_prompts else None,
        "left_out": dict(totals.left_out),
        "sample_seconds": round(totals.sample_seconds, 3),
    }
    logger.info(
        "targets lie in [%.2f, %.2f] nats over %d answers of %.0f tokens on average",
        *totals.range_nats, totals.answers, result["mean_length_tokens"],
    )  # fmt: skip
    if totals.left_out:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(totals.left_out.items()))
        logger.info("not trained on: %s of %d answers (rollout.leave_out)", listed, totals.answers)
    return result
