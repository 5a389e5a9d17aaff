"""One self-play iteration, end to end: gpo, the way a TRL user must do it, and the limit, in one run.

    python -m benchmarks.end_to_end --output runs/bench-end_to_end.json      (about twenty minutes on two cores)

The same policy, prompts, K, token limit, temperature and judge for all; top_p = 1. All start from files and end with a
checkpoint on disk, and all that a shell would wait for is counted, the starts of processes too:

    gpo      `gpo run` with one iteration: sampling, scoring, training, publishing, canaries, one held-out answer
    trl      three programs with files between them: transformers' `generate` in batches, the model card's scorer,
             `DPOTrainer` with `sppo_hard` and its live reference on K / 2 pairs a prompt, the same answers in all
    limit    three programs that call the parts directly: the engine with all prompts at once, the scorer with all
             answers at once, `GPOTrainer` alone

The ways take turns. `benchmarks/end_to_end_ways.py` has the programs.
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

from benchmarks.frame import HERE, Claim, at_least, at_most, claim_lines, measured_dtype, spread, write_report

STAGES = {
    "gpo": ("run",),
    "trl": ("trl-generate", "trl-score", "trl-train"),
    "limit": ("limit-generate", "limit-score", "limit-train"),
}
WORKLOAD = ("prompts", "samples", "max_tokens", "step_prompts", "dtype")


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The prompts, a judge with random heads (they cost what trained ones do), and gpo's config."""
    from reward import GeneralPreferenceModel
    from reward.settings import RewardSettings

    *rows, other = options.prompts_file.read_text("utf-8").splitlines()[: options.prompts + 1]
    (folder / "prompts.jsonl").write_text("".join(row + "\n" for row in rows), "utf-8")
    (folder / "heldout.jsonl").write_text(other + "\n", "utf-8")
    settings = RewardSettings.published(6, gated=True)
    GeneralPreferenceModel.from_backbone(options.model, settings, seed=1).save_pretrained(folder / "judge")
    config = {
        "name": "bench",
        "iterations": 1,
        "policy": {"model": str(options.model.absolute())},
        "prompts": {
            "train": str(folder / "prompts.jsonl"),
            "heldout": str(folder / "heldout.jsonl"),
            "heldout_count": 1,
            "per_iteration": len(rows),
        },
        "rollout": {"samples": options.samples, "max_tokens": options.max_tokens, "shard_prompts": 16},
        "preference": {"sources": {"judge": f"gpm:{folder / 'judge'}"}, "train_on": "judge"},
        "target": {"method": "gpo", "beta": 1.0},
        "train": {"learning_rate": 5e-7, "batch_prompts": options.step_prompts, "batch_tokens": options.batch_tokens},
        "evaluation": {"samples": 1, "kl_prompts": 1},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def timed(words: list[str], log: Path) -> float:
    """Seconds of a program, its start and end counted; raises CalledProcessError with its log named."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(HERE.parent)}
    started = time.monotonic()
    with log.open("w") as lines:
        try:
            subprocess.run(words, check=True, env=environment, stdout=lines, stderr=subprocess.STDOUT)
        except subprocess.CalledProcessError:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
    return time.monotonic() - started


def one_turn(way: str, folder: Path, options: argparse.Namespace, turn: int) -> dict[str, float]:
    """Seconds of each program of a way."""
    work = folder / f"{way}-{turn}"
    work.mkdir()
    seconds = {}
    for stage in STAGES[way]:
        if way == "gpo":
            words = ["-m", "gpo", "run", str(folder / "config.json"), "--run-dir", str(work / "run")]
        else:
            words = ["-m", "benchmarks.end_to_end_ways", stage, "--folder", str(folder), "--work", str(work)]
            for name in ("model", "samples", "max_tokens", "step_prompts", "batch_tokens", "dtype", "threads"):
                words += ["--" + name.replace("_", "-"), str(getattr(options, name))]
        seconds[stage] = timed([sys.executable, *words], work / f"{stage}.log")
        print(f"turn {turn + 1}: {stage:15} {seconds[stage]:7.1f} s", file=sys.stderr, flush=True)
    return seconds


def gpo_stages(work: Path) -> dict[str, float]:
    """Seconds of the run's own stages, from its journal."""
    events = [json.loads(line) for line in (work / "run" / "journal.jsonl").read_text().splitlines()]
    ended = [event for event in events if event["event"] == "stage"]
    return {f"{event['stage']} {event['iteration']}": event["seconds"] for event in ended if "seconds" in event}


def answer_tokens(work: Path) -> float:
    """Mean over the answers that a way drew."""
    return round(statistics.mean(map(len, json.loads((work / "answers.json").read_text("utf-8"))["ids"])), 1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn, as often as asked."""
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as name:
        folder = Path(name)
        prepare(folder, options)
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in STAGES}
        for turn in range(options.rounds):
            for way in STAGES:
                turns[way].append(one_turn(way, folder, options, turn))
        inside = gpo_stages(folder / "gpo-0")
        lengths = {f"mean_answer_tokens_{way}": answer_tokens(folder / f"{way}-0") for way in ("trl", "limit")}
    totals = {way: [sum(turn.values()) for turn in found] for way, found in turns.items()}
    return {
        "workload": {name: getattr(options, name) for name in WORKLOAD} | lengths,
        "seconds": {way: [round(total, 1) for total in found] for way, found in totals.items()},
        "median": {way: round(statistics.median(found), 1) for way, found in totals.items()},
        "spread": {way: spread(found) for way, found in totals.items()},
        "programs": turns,
        "stages_of_gpo": inside,
    }


def claims_of(found: dict[str, Any]) -> list[Claim]:
    """At least three times TRL's way, near the limit."""
    median, varied = found["median"], found["spread"]
    return [
        at_least(
            "end to end: TRL's way / gpo, time",
            round(median["trl"] / median["gpo"], 3),
            3.0,
            max(filter(None, (varied["trl"], varied["gpo"])), default=None),
        ),
        at_most(
            "end to end: gpo / the limit, time",
            round(median["gpo"] / median["limit"], 3),
            1.15,
            max(filter(None, (varied["limit"], varied["gpo"])), default=None),
        ),
    ]


def markdown(found: dict[str, Any]) -> str:
    """The report as tables."""
    work = found["workload"]
    lines = [
        f"{work['prompts']} prompts, K = {work['samples']}, up to {work['max_tokens']} tokens, {work['dtype']}",
        "",
        "| way | median s | programs, s |",
        "|---|---:|---|",
    ]
    for way, median in found["median"].items():
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found["programs"][way][0].items())
        lines.append(f"| {way} | {median:.0f} | {parts} |")
    return "\n".join([*lines, "", *claim_lines(claims_of(found))])


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument("--prompts-file", type=Path, default=HERE.parent / "configs/data/quickstart_train.jsonl")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--step-prompts", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.dtype = measured_dtype(options.dtype)
    found = measure(options)
    print(markdown(found))
    write_report(found, claims_of(found), options.output)


if __name__ == "__main__":
    main()
