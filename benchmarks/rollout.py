"""Sampling through the pool against the same engine called directly, against transformers, and with scoring beside it.

One run, one machine, the same prompts, K and lengths. Short and long answers are mixed on purpose.

    python -m benchmarks.rollout --model models/smollm2-135m-instruct --output runs/bench-rollout.json

`--parts throughput` measures the pool against the engine and transformers, `--parts overlap` scoring beside sampling,
`--parts seeds` how many answers keep their tokens when the same requests come in other company. Each pair of ways takes
turns for some rounds, of which medians are told; all are warm before the first. In `overlap` the engine holds few
answers at a time, so that there are many waves: where all fit at once, there is nothing to score before the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.frame import Claim, at_least, at_most, claim_lines, spread, write_report
from benchmarks.rollout_parts import Bench, bench_config, requests_for, write_gpm
from gpo.cpu import keeping_malloc

SAMPLES, LONGEST = 4, 96
WAVES = {"sequences": 16, "shard_prompts": 4}
"""What the engine holds at a time, and a shard, where overlap is measured."""


@contextmanager
def transformers_peer(model: Path, prompts: int) -> Iterator[Callable[[], float]]:
    """A process with transformers' `generate`, warm; each call is one more round, in tokens a second."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.rollout_transformers",
        str(model),
        *map(str, (prompts, SAMPLES, LONGEST)),
    ]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env={**os.environ, **keeping_malloc()}, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None

        def answer() -> dict[str, Any]:
            line = process.stdout.readline()  # type: ignore[union-attr]
            if not line:
                raise RuntimeError(f"transformers' process ended with status {process.wait()}")
            found: dict[str, Any] = json.loads(line)
            return found

        def one_round() -> float:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return float(answer()["tokens_a_second"])

        answer()
        yield one_round


def throughput(model: Path, folder: Path, prompts: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of the pool, of its own engine and of transformers' generate in turn."""
    config = bench_config(model, folder, samples=SAMPLES, max_tokens=LONGEST, shape="split", threads=_cores())
    speeds: dict[str, list[float]] = {"direct": [], "pool": [], "transformers": []}
    with Bench(config, model, folder) as bench, transformers_peer(model, prompts) as peer:
        requests = requests_for(model, prompts)
        bench.direct(requests[:8])
        for _ in range(rounds):
            speeds["direct"].append(bench.direct(requests))
            speeds["pool"].append(bench.through_the_pool(requests))
            speeds["transformers"].append(peer())
    median = {way: statistics.median(found) for way, found in speeds.items()}
    found: dict[str, Any] = {f"{way}_tokens_a_second": round(value, 1) for way, value in median.items()}
    found |= {f"{way}_rounds": [round(value, 1) for value in values] for way, values in speeds.items()}
    found["pool_to_direct"] = round(median["pool"] / median["direct"], 3)
    found["pool_to_transformers"] = round(median["pool"] / median["transformers"], 2)
    return found


def overlap(model: Path, folder: Path, prompts: int, rounds: int) -> dict[str, Any]:
    """Wall time of sampling alone, scoring alone and both: on shared cores, and on cores of their own.

    Half of the prompts are enough for many waves.
    """
    gpm = write_gpm(model, folder / "gpm")
    found: dict[str, Any] = {}
    for shape, threads in (("colocated", _cores()), ("split", max(1, _cores() // 2))):
        config = bench_config(
            model,
            folder,
            samples=SAMPLES,
            max_tokens=LONGEST,
            shape=shape,
            threads=threads,
            source=f"gpm:{gpm}",
            **WAVES,
        )
        seconds: dict[str, list[float]] = {"sample": [], "score": [], "both": []}
        with Bench(config, model, folder) as bench:
            requests = requests_for(model, prompts // 2)
            bench.both(requests[:8])
            for _ in range(rounds):
                sample, rows = bench.sample_alone(requests)
                seconds["sample"].append(sample)
                seconds["score"].append(bench.score_alone(rows))
                seconds["both"].append(bench.both(requests))
        median = {way: statistics.median(values) for way, values in seconds.items()}
        alone = median["sample"], median["score"]
        limit = sum(alone) if shape == "colocated" else max(alone)
        found[shape] = {f"{way}_seconds": round(value, 2) for way, value in median.items()}
        found[shape] |= {
            "rounds": {way: [round(value, 2) for value in values] for way, values in seconds.items()},
            "both_to_" + ("sum" if shape == "colocated" else "longer"): round(median["both"] / limit, 3),
            "spread": spread(seconds["both"]),
        }
    return found


def seeds(model: Path, folder: Path, prompts: int, _rounds: int) -> dict[str, Any]:
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
        for way, words, target in (
            ("direct", "its engine called directly", 0.95),
            ("transformers", "transformers' generate", 2.5),
        ):
            both = (spread(found["pool_rounds"]), spread(found[f"{way}_rounds"]))
            varied = max(filter(None, both), default=None)
            claims.append(
                at_least(f"rollout: the pool / {words}, tokens a second", found[f"pool_to_{way}"], target, varied)
            )
    if found := result.get("overlap"):
        claims += [
            at_most(
                "rollout: sampling and scoring on shared cores / the sum of both alone, time",
                found["colocated"]["both_to_sum"],
                1.05,
                found["colocated"]["spread"],
            ),
            at_most(
                "rollout: sampling and scoring on cores of their own / the longer of both alone, time",
                found["split"]["both_to_longer"],
                1.1,
                found["split"]["spread"],
            ),
        ]
    return claims


def _cores() -> int:
    return len(os.sched_getaffinity(0))


PARTS = {"throughput": throughput, "overlap": overlap, "seeds": seeds}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench-rollout.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {"prompts": options.prompts, "samples": SAMPLES, "longest_answer_tokens": LONGEST}
    started = time.monotonic()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            result[part] = PARTS[part](options.model.absolute(), Path(folder), options.prompts, options.rounds)
    result["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(result, indent=2))
    print("\n".join(claim_lines(claims_of(result))))
    write_report(result, claims_of(result), options.output)


if __name__ == "__main__":
    main()
