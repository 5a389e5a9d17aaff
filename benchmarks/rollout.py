"""Sampling through the pool against the same engine called directly, against transformers, and with scoring beside it.

One run, one machine, the same prompts, K and lengths. Short and long answers are mixed on purpose.

    python -m benchmarks.rollout --model models/smollm2-135m-instruct --output runs/bench-rollout.json

`--parts throughput` measures the pool against the engine and transformers, `--parts overlap` scoring beside sampling,
`--parts seeds` how many answers keep their tokens when the same requests come in other company.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.frame import Claim, at_least, at_most, claim_lines, spread, write_report
from benchmarks.rollout_parts import Bench, bench_config, requests_for, write_gpm

ROUNDS = 3
SAMPLES, LONGEST = 4, 96


def throughput(model: Path, folder: Path, prompts: int) -> dict[str, Any]:
    """Tokens a second of the pool and of its own engine in turn, then of transformers' generate."""
    config = bench_config(model, folder, samples=SAMPLES, max_tokens=LONGEST, shape="split", threads=_cores())
    direct, pooled = [], []
    with Bench(config, model, folder) as bench:
        requests = requests_for(model, prompts)
        bench.direct(requests[:8])
        for _ in range(ROUNDS):
            direct.append(bench.direct(requests))
            pooled.append(bench.through_the_pool(requests))
    found = {
        "direct_tokens_a_second": _median(direct),
        "pool_tokens_a_second": _median(pooled),
        "direct_rounds": [round(value, 1) for value in direct],
        "pool_rounds": [round(value, 1) for value in pooled],
    }
    words = [
        sys.executable,
        "-m",
        "benchmarks.rollout_transformers",
        str(model),
        str(prompts),
        str(SAMPLES),
        str(LONGEST),
    ]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    peer = json.loads(done.stdout.splitlines()[-1])
    found["transformers_tokens_a_second"] = peer["tokens_a_second"]
    found["pool_to_direct"] = round(found["pool_tokens_a_second"] / found["direct_tokens_a_second"], 3)
    found["pool_to_transformers"] = round(found["pool_tokens_a_second"] / peer["tokens_a_second"], 2)
    return found


def overlap(model: Path, folder: Path, prompts: int) -> dict[str, Any]:
    """Wall time of sampling alone, scoring alone and both: on shared cores, and on cores of their own."""
    gpm = write_gpm(model, folder / "gpm")
    found: dict[str, Any] = {}
    for shape, threads in (("colocated", _cores()), ("split", max(1, _cores() // 2))):
        config = bench_config(
            model, folder, samples=SAMPLES, max_tokens=LONGEST, shape=shape, threads=threads, source=f"gpm:{gpm}"
        )
        with Bench(config, model, folder) as bench:
            requests = requests_for(model, prompts)
            bench.both(requests[:8])
            sample, rows = bench.sample_alone(requests)
            score = bench.score_alone(rows)
            both = bench.both(requests)
        limit = sample + score if shape == "colocated" else max(sample, score)
        found[shape] = {
            "sample_seconds": round(sample, 2),
            "score_seconds": round(score, 2),
            "both_seconds": round(both, 2),
            "both_to_" + ("sum" if shape == "colocated" else "longer"): round(both / limit, 3),
        }
    return found


def seeds(model: Path, folder: Path, prompts: int) -> dict[str, Any]:
    """Share of answers with the very same tokens as in one batch of all prompts, and of tokens before they part."""
    config = bench_config(model, folder, samples=SAMPLES, max_tokens=LONGEST, shape="split", threads=_cores())
    with Bench(config, model, folder) as bench:
        requests = requests_for(model, prompts)
        together = bench.answers([requests])
        ways = {
            "again": bench.answers([requests]),
            "in_reverse": bench.answers([requests[::-1]]),
            "by_eight": bench.answers([requests[start : start + 8] for start in range(0, prompts, 8)]),
            "alone": bench.answers([[request] for request in requests[::4]]),
        }
    return {way: _agreement(together, answers) for way, answers in ways.items()}


def _agreement(ours: dict[str, list[list[int]]], theirs: dict[str, list[list[int]]]) -> dict[str, float]:
    pairs = [pair for prompt in theirs for pair in zip(ours[prompt], theirs[prompt], strict=True)]
    common = sum(len(os.path.commonprefix([a, b])) for a, b in pairs)
    return {
        "answers": len(pairs),
        "same_answers": round(sum(a == b for a, b in pairs) / len(pairs), 4),
        "same_tokens": round(common / sum(max(len(a), len(b)) for a, b in pairs), 4),
    }


def claims_of(result: dict[str, Any]) -> list[Claim]:
    """What the pool promises."""
    claims = []
    if found := result.get("throughput"):
        varied = max(filter(None, (spread(found["pool_rounds"]), spread(found["direct_rounds"]))), default=None)
        claims += [
            at_least(
                "rollout: the pool / its engine called directly, tokens a second", found["pool_to_direct"], 0.95, varied
            ),
            at_least("rollout: the pool / transformers' generate, tokens a second", found["pool_to_transformers"], 2.5),
        ]
    if found := result.get("overlap"):
        claims += [
            at_most(
                "rollout: sampling and scoring on shared cores / the sum of both alone, time",
                found["colocated"]["both_to_sum"],
                1.05,
            ),
            at_most(
                "rollout: sampling and scoring on cores of their own / the longer of both alone, time",
                found["split"]["both_to_longer"],
                1.1,
            ),
        ]
    return claims


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 1)


PARTS = {"throughput": throughput, "overlap": overlap, "seeds": seeds}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench-rollout.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {"prompts": options.prompts, "samples": SAMPLES, "longest_answer_tokens": LONGEST}
    started = time.monotonic()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            result[part] = PARTS[part](options.model.absolute(), Path(folder), options.prompts)
    result["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(result, indent=2))
    print("\n".join(claim_lines(claims_of(result))))
    write_report(result, claims_of(result), options.output)


if __name__ == "__main__":
    main()
