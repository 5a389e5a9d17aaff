"""How fast K answers to each of many prompts are scored: our two back ends, the model card's way and the limit.

Run: nice python benchmarks/scoring.py --output scoring.json     (about ten minutes on two cores; --quick: two)

SmolLM2-135M with a random gated head of width 6, 16 prompts of 20 to 300 words with 8 answers of 20 to 400 words.
All ways compute in one type: `--dtype auto` is bfloat16 where the CPU has matrix instructions for it, else float32;
bfloat16 that is asked for is computed everywhere, emulated if need be, and the report says so. The card's way, our
transformers back end and the limit take turns in one process; vLLM, which rearranges threads and memory, runs after
them in its own. Peak memory is that of a process that only does this one thing. All ways keep freed memory, which the
card's way by itself would not. `benchmarks/scoring_ways.py` says what each does.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.frame import (  # noqa: E402
    WORDS,
    Claim,
    at_least,
    at_most,
    claim_lines,
    measured_dtype,
    spread,
    write_report,
)
from gpo.cpu import keeping_malloc  # noqa: E402

WAYS = ("card", "transformers", "vllm", "limit")


def make_workload(prompts: int, answers: int, seed: int = 20_240) -> dict[str, Any]:
    """Conversations of words drawn from the list, the same at every run."""
    draw = random.Random(seed)

    def text(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(fewest, most))).capitalize() + "."

    def group(count: int, prompt: tuple[int, int], answer: tuple[int, int]) -> list[list[dict[str, str]]]:
        question = {"role": "user", "content": text(*prompt)}
        return [[question, {"role": "assistant", "content": text(*answer)}] for _ in range(count)]

    return {"groups": [group(answers, (20, 300), (20, 400)) for _ in range(prompts)]}


def run_role(role: str, folder: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """One process that does one thing, and what it found."""
    print(f"{datetime.now():%H:%M:%S} {role} {' '.join(more)}", file=sys.stderr, flush=True)
    files = {"checkpoint": folder / "checkpoint", "workload": folder / "workload.json", "result": folder / "found.json"}
    # As a module: run as a file, it would find benchmarks/rollout.py where vLLM's plugin asks for the package.
    command = [sys.executable, "-m", "benchmarks.scoring_ways", role, *more]
    command += [word for name, path in files.items() for word in (f"--{name}", str(path))]
    command += ["--dtype", options.dtype, "--threads", str(options.threads), "--repeats", str(options.repeats)]
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **keeping_malloc(), "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
    found: dict[str, Any] = json.loads(files["result"].read_text("utf-8"))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, each part in a process of its own, one after the other."""
    from reward.compute_type import device_here, is_emulated

    sizes = (3, 3) if options.quick else (16, 8)
    with tempfile.TemporaryDirectory(prefix="scoring-") as name:
        folder = Path(name)
        (folder / "workload.json").write_text(json.dumps(make_workload(*sizes)), "utf-8")
        tokens = run_role("prepare", folder, options, "--backbone", str(options.model))["tokens"]
        found = run_role("together", folder, options) | run_role("vllm", folder, options)
        for way in ("card", "transformers", "limit"):
            found[way] |= run_role("memory", folder, options, "--way", way)
    return {
        "workload": {"prompts": sizes[0], "answers": sizes[1], "tokens": tokens, "dtype": options.dtype},
        "emulated": is_emulated(options.dtype, device_here()),
        "ways": {way: summary(found[way], tokens) for way in WAYS},
        "ratios": ratios({way: statistics.median(found[way]["seconds"]) for way in WAYS}),
        "largest_score_difference": {
            way: largest_difference(found["transformers"]["tables"], found[way]["tables"]) for way in ("card", "vllm")
        },
        "threads": options.threads,
    }


def summary(found: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    median = statistics.median(found["seconds"])
    return {
        "seconds": [round(seconds, 3) for seconds in found["seconds"]],
        "median": round(median, 3),
        "spread": spread(found["seconds"]),
        "conversation_tokens_per_second": round(tokens["all"] / median),
        "peak_mib": round(found["peak_mib"]),
    }


def ratios(median: dict[str, float]) -> dict[str, float]:
    best = min(median["transformers"], median["vllm"])
    values = {
        "card / transformers": median["card"] / median["transformers"],
        "card / vllm": median["card"] / median["vllm"],
        "transformers / limit": median["transformers"] / median["limit"],
        "vllm / limit": median["vllm"] / median["limit"],
        "best / limit": best / median["limit"],
    }
    return {name: round(value, 3) for name, value in values.items()}


def claims_of(report: dict[str, Any]) -> list[Claim]:
    """What the scorer promises, for bfloat16 where it is not emulated; in float32 reading less text is all there is."""
    ratio, ways = report["ratios"], report["ways"]
    widest = {way: max(ways[way]["spread"] or 0.0, ways["card"]["spread"] or 0.0) for way in WAYS}
    return [
        at_least("scoring: the model card's way / our vllm back end, time", ratio["card / vllm"], 3.0, widest["vllm"]),
        at_least(
            "scoring: the model card's way / our transformers back end, time",
            ratio["card / transformers"],
            2.5,
            widest["transformers"],
        ),
        at_most("scoring: our best back end / the limit, time", ratio["best / limit"], 1.2, widest["limit"]),
    ]


def largest_difference(one: list[Any], other: list[Any]) -> float:
    """Between two lists of tables; raw scores lie in [-1, 1]."""
    flat = [[score for table in tables for row in table for score in row] for tables in (one, other)]
    return round(max(abs(a - b) for a, b in zip(*flat, strict=True)), 5)


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    work, tokens = report["workload"], report["workload"]["tokens"]
    dtype = f"{work['dtype']} (emulated)" if report["emulated"] else work["dtype"]
    lines = [
        f"{dtype} in all ways, {work['prompts']} prompts x {work['answers']} answers, {tokens['all']:,} tokens, "
        f"{tokens['after_sharing']:,} when every common beginning is computed once",
        "",
        "| way | median s | spread | conversation tokens/s | peak MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, row in report["ways"].items():
        speed = row["conversation_tokens_per_second"]
        varied = "" if row["spread"] is None else f"{row['spread']:.1%}"
        lines.append(f"| {way} | {row['median']:.2f} | {varied} | {speed:,} | {row['peak_mib']:,} |")
    lines += ["", *claim_lines(claims_of(report))]
    differences = report["largest_score_difference"]
    lines += ["", f"largest |score difference| to our transformers back end: {differences}"]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON with every number, machine and versions")
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--repeats", type=int, default=None, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="3 prompts x 3 answers")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 3)
    if not (options.model / "config.json").is_file():
        parser.error(
            f"--model {options.model} has no config.json; `python scripts/smollm2.py {options.model}` makes it"
        )
    options.dtype = measured_dtype(options.dtype)
    report = measure(options)
    print(markdown(report))
    write_report(report, claims_of(report), options.output)


if __name__ == "__main__":
    main()
