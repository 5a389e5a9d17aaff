"""Sampling through the pool against the same engine called directly, against transformers, and with scoring beside it.

One run, one machine, the same prompts, K and lengths. Short and long answers are mixed on purpose.

    python -m benchmarks.rollout --model models/smollm2-135m-instruct --output runs/bench-rollout.json

`--parts throughput` measures the pool against the engine and transformers, `--parts overlap` scoring beside sampling.
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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 1)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=["throughput", "overlap"], default=["throughput", "overlap"])
    parser.add_argument("--output", type=Path, default=Path("runs/bench-rollout.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {"prompts": options.prompts, "samples": SAMPLES, "longest_answer_tokens": LONGEST}
    started = time.monotonic()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            work = throughput if part == "throughput" else overlap
            result[part] = work(options.model.absolute(), Path(folder), options.prompts)
    result["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(result, indent=2)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
