"""Generate and score: the prompts of an iteration become shards of rows with targets."""

import logging
import time
from pathlib import Path
from typing import Any

from gpo.cluster import collect
from gpo.config import TargetConfig
from gpo.context import RunContext
from gpo.errors import StageError
from gpo.logs import Progress
from gpo.pool import Shard
from gpo.scoring import ShardSummary, summarise_file
from rollout.sampler import SampleReport

logger = logging.getLogger(__name__)


def generate_and_score(run: RunContext, iteration: int) -> dict[str, Any]:
    """Write the shards of an iteration that are not there yet; returns what the journal keeps of the stage."""
    started = time.monotonic()
    shards = plan_shards(run, iteration)
    recorded = {line["shard"] for line in run.directory.journal() if _is_shard_line(line, iteration)}
    waiting: list[Shard] = []
    summaries: list[ShardSummary] = []
    for shard in shards:
        if Path(shard.path).exists():
            # A file that exists is whole; only its line may be missing, when the driver died between the two.
            summaries.append(summarise_file(Path(shard.path)))
            if shard.index not in recorded:
                run.directory.record("shard", iteration=iteration, shard=shard.index, found=True)
        else:
            waiting.append(shard)
    if len(waiting) < len(shards):
        logger.info("iteration %d: %d of %d shards are there already", iteration, len(summaries), len(shards))
    title = f"iteration {iteration}: generate and score"
    progress = Progress(title, sum(len(shard.requests) for shard in shards), "prompts")
    reports: list[SampleReport] = []

    def finished(shard: Shard, sampled: SampleReport, scored: ShardSummary) -> None:
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
        check_targets(scored, run.config.target)
        reports.append(sampled)
        summaries.append(scored)
        tokens, seconds = sum(r.tokens for r in reports), sum(r.seconds for r in reports)
        progress.update(sum(s.prompts for s in summaries), f"{tokens / seconds:.0f} tokens/s in the engine")

    run.pool.run(waiting, run.weights_after(iteration - 1), run.sampling(run.config.rollout.samples), finished)
    return _stage_result(summaries, reports, time.monotonic() - started)


def plan_shards(run: RunContext, iteration: int) -> list[Shard]:
    """Shards with fixed ids: the same prompts in the same order at every start."""
    requests = run.requests(run.prompts[iteration - 1], iteration, "rollout")
    size = run.config.rollout.shard_prompts
    return [
        Shard(index, requests[start : start + size], str(run.directory.shard(iteration, index).absolute()))
        for index, start in enumerate(range(0, len(requests), size))
    ]


def check_targets(summary: ShardSummary, target: TargetConfig) -> None:
    """Refuse targets beyond what the config calls sane; raises StageError with the range and what to change."""
    largest = max(abs(summary.smallest_target), abs(summary.largest_target))
    if largest > target.largest_nats:
        raise StageError(
            f"targets reach {largest:.1f} nats, beyond target.largest_nats = {target.largest_nats:g}: log-ratios of "
            f"that size destroy a policy. Raise target.beta (now {target.beta:g}), set target.clamp, or raise "
            "target.largest_nats if you mean it"
        )


def _is_shard_line(line: dict[str, Any], iteration: int) -> bool:
    return line.get("event") == "shard" and line.get("iteration") == iteration


def _stage_result(summaries: list[ShardSummary], reports: list[SampleReport], seconds: float) -> dict[str, Any]:
    answers = sum(summary.answers for summary in summaries)
    shares = [summary.cyclic_share for summary in summaries if summary.cyclic_share is not None]
    low = min(summary.smallest_target for summary in summaries)
    high = max(summary.largest_target for summary in summaries)
    result = {
        "seconds": round(seconds, 3),
        "prompts": sum(summary.prompts for summary in summaries),
        "answers": answers,
        "mean_length_tokens": sum(summary.tokens for summary in summaries) / answers,
        "target_range_nats": [low, high],
        "cyclic_share": sum(shares) / len(shares) if shares else None,
        "sample_seconds": round(sum(report.seconds for report in reports), 3),
    }
    logger.info(
        "targets lie in [%.2f, %.2f] nats over %d answers of %.0f tokens on average",
        low, high, answers, result["mean_length_tokens"],
    )  # fmt: skip
    return result
