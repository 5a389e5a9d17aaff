"""`gpo reward bench`: a reward model on RewardBench, LLMBar or any pairs; per-pair rows and a table of sections."""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import relative
from gpo.errors import UserError
from gpo.files import write_json, write_text
from gpo.logs import Progress
from gpo.modelfiles import longest_conversation
from gpo.printable import tell

logger = logging.getLogger(__name__)

ROWS, SUMMARY = "pairs.jsonl", "bench.json"
TIES = {"half": 0.5, "wrong": 0.0}


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What the command line asks for."""

    model: Path
    data: str
    output: Path
    ties: str = "half"
    backend: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    """None: 4096, or the model's context where that is shorter."""
    limit: int | None = None


def bench_rewards(request: BenchRequest) -> int:
    """Score every pair, write rows and summary, print the table; returns the exit status."""
    from reward.errors import RewardInputError

    try:
        return _bench(request)
    except RewardInputError as error:
        raise UserError(str(error)) from None


def _bench(request: BenchRequest) -> int:
    from reward.checkpoint import check_directory
    from reward.rewardbench import read_bench

    check_directory(request.model)
    pairs = read_bench(request.data)[: request.limit]
    from gpo.cpu import prepare_process

    prepare_process(len(os.sched_getaffinity(0)))
    from reward.bench import bench_rows, bench_summary
    from reward.scorer import PreferenceScorer

    scorer = PreferenceScorer.from_pretrained(
        request.model,
        backend=request.backend,
        dtype=request.dtype,
        max_length=longest_conversation(request.model, request.max_length),
    )
    bar = Progress("scoring", len(pairs), "pairs")
    results = bench_rows(scorer, pairs, TIES[request.ties], lambda done, _: bar.update(done))
    summary = bench_summary(results, TIES[request.ties]) | {"model": str(request.model), "data": request.data}
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in results)
    write_text(request.output / ROWS, lines)
    write_json(request.output / SUMMARY, summary)
    tell(table(summary))
    logger.info("rows in %s, sums in %s", relative(request.output / ROWS), relative(request.output / SUMMARY))
    return 0


def table(summary: dict[str, Any]) -> str:
    """Subsets with intervals, then sections, in percent."""
    width = max(len(name) for name in [*summary["subsets"], *summary["sections"], "all pairs"])
    lines = [f"{'':{width}}  pairs  accuracy  95 % interval"]
    for name, one in [*summary["subsets"].items(), ("all pairs", summary["all"])]:
        low, high = one["ci95"]
        lines.append(f"{name:{width}}  {one['pairs']:5}  {one['accuracy']:8.1%}  [{low:.1%}, {high:.1%}]")
    for name, value in summary["sections"].items():
        lines.append(f"{name:{width}}         {value:8.1%}")
    if summary["missing_subsets"]:
        lines.append(f"not in the data: {', '.join(summary['missing_subsets'])}")
    return "\n".join(lines)
