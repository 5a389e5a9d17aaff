"""One self-play iteration, end to end: gpo, the way a TRL user must do it, and the limit, in one run.

    python -m benchmarks.end_to_end --output runs/bench-end_to_end.json      (about half an hour on two cores)

The same policy, prompts, K, token limit, temperature and judge for all; top_p = 1. All start from files and end with a
checkpoint on disk, and all that a shell would wait for is counted, the starts of processes too:

    gpo      `gpo run` with one iteration: sampling, scoring, training, publishing, canaries, one held-out answer
    trl      three programs with files between them: transformers' `generate` in batches, the model card's scorer,
             `DPOTrainer` with `sppo_hard` and its live reference on K / 2 pairs a prompt, the same answers in all
    limit    three programs that call the parts directly: the engine with all prompts at once, the scorer with all
             answers at once, `GPOTrainer` alone

The ways take turns, in the opposite order each other round, behind a small run of gpo that is not counted: the first
that starts would wait for the disk, for the model and for all that is imported. All keep freed memory, by gpo's malloc.
DPOTrainer gets the fastest of a few batch sizes and attentions: each is tried for a few steps in the first round, which
is not counted. `--least-minutes` ends the benchmark where gpo's way or TRL's is over sooner: process starts would weigh
too much. `benchmarks/end_to_end_ways.py` has the programs.
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

from benchmarks.end_to_end_ways import TRIED_STEPS, TRL_TRIES
from benchmarks.frame import HERE, Claim, at_least, at_most, claim_lines, measured_dtype, spread, write_report
from gpo.cpu import keeping_malloc
from rollout.records import read_shard

STAGES = {
    "gpo": ("run",),
    "trl": ("trl-generate", "trl-score", "trl-train"),
    "limit": ("limit-generate", "limit-score", "limit-train"),
}
WARM_UP_PROMPTS = 4
EXPLAINED = "[more](#one-iteration-end-to-end)"
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
        "policy": {"model": str(options.model.absolute()), "dtype": options.dtype},
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
        "cluster": {"threads": options.threads},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def timed(words: list[str], log: Path, malloc: dict[str, str]) -> float:
    """Seconds of a program, its start and end counted; raises CalledProcessError with its log named."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(HERE.parent), **malloc}
    started = time.monotonic()
    with log.open("w") as lines:
        try:
            subprocess.run(words, check=True, env=environment, stdout=lines, stderr=subprocess.STDOUT)
        except subprocess.CalledProcessError:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
    return time.monotonic() - started


def program(stage: str, work: Path, options: argparse.Namespace, *more: str) -> float:
    """Seconds of one program."""
    folder = work.parent
    if stage == "run":
        words = ["-m", "gpo", "run", str(folder / "config.json"), "--run-dir", str(work / "run")]
    else:
        words = ["-m", "benchmarks.end_to_end_ways", stage, "--folder", str(folder), "--work", str(work), *more]
        for name in ("model", "samples", "max_tokens", "step_prompts", "batch_tokens", "dtype", "threads"):
            words += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    malloc = {} if stage == "run" else keeping_malloc()  # gpo gives it to its own processes.
    seconds = timed([sys.executable, *words], work / f"{stage}.log", malloc)
    print(f"{work.name}: {stage:15} {seconds:7.1f} s  {' '.join(more)}", file=sys.stderr, flush=True)
    return seconds


def try_settings(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each of DPOTrainer's settings with its `seconds` a step."""
    found = []
    for one in TRL_TRIES:
        program("trl-try", work, options, *words_of(one))
        found.append({**one, "seconds": round(json.loads((work / "try.json").read_text("utf-8")), 2)})
    return found


def words_of(settings: dict[str, Any]) -> list[str]:
    """As `benchmarks/end_to_end_ways.py` takes DPOTrainer's settings."""
    return ["--pairs-a-pass", str(settings["pairs_a_pass"]), "--attention", settings["attention"]]


def fastest(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """By seconds a step."""
    return min(tried, key=lambda one: one["seconds"])


def one_turn(way: str, work: Path, options: argparse.Namespace, tried: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each program of a way; raises RuntimeError where they are too few. Fills `tried` where it is empty."""
    work.mkdir()
    seconds = {}
    for stage in STAGES[way]:
        more: list[str] = []
        if stage == "trl-train":
            if not tried:
                tried += try_settings(work, options)
            more = words_of(fastest(tried))
        seconds[stage] = program(stage, work, options, *more)
    total = sum(seconds.values())
    if way != "limit" and total < 60 * options.least_minutes:
        raise RuntimeError(
            f"{way} took {total:.0f} s, less than {options.least_minutes:g} minutes: give more --prompts"
        )
    return seconds


def warm_up(folder: Path, options: argparse.Namespace) -> None:
    """gpo on a few prompts: it loads what the others load too, so that nobody waits for the disk alone."""
    few = argparse.Namespace(**{**vars(options), "prompts": WARM_UP_PROMPTS, "least_minutes": 0.0})
    folder.mkdir()
    prepare(folder, few)
    one_turn("gpo", folder / "gpo", few, [])


def gpo_stages(work: Path) -> dict[str, float]:
    """Seconds of the run's own stages, from its journal."""
    events = [json.loads(line) for line in (work / "run" / "journal.jsonl").read_text().splitlines()]
    ended = [event for event in events if event["event"] == "stage"]
    return {f"{event['stage']} {event['iteration']}": event["seconds"] for event in ended if "seconds" in event}


def answer_tokens(way: str, work: Path) -> float:
    """Mean over the answers that a way drew: each draws its own from the same policy, so lengths are told."""
    if way == "gpo":
        shards = work.glob("run/iterations/001/rollouts/*.parquet")
        answers = [ids for shard in shards for row in read_shard(shard) for ids in row.completion_ids]
    else:
        answers = json.loads((work / "answers.json").read_text("utf-8"))["ids"]
    return round(statistics.mean(map(len, answers)), 1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn, as often as asked."""
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as name:
        folder = Path(name)
        prepare(folder, options)
        warm_up(folder / "warm-up", options)
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in STAGES}
        tried: list[dict[str, Any]] = []
        for turn in range(options.rounds):
            for way in list(STAGES)[:: -1 if turn % 2 else 1]:
                turns[way].append(one_turn(way, folder / f"{way}-{turn}", options, tried))
        inside = gpo_stages(folder / "gpo-0")
        lengths = {f"mean_answer_tokens_{way}": answer_tokens(way, folder / f"{way}-0") for way in STAGES}
    totals = {way: [sum(turn.values()) for turn in found] for way, found in turns.items()}
    return {
        "workload": {name: getattr(options, name) for name in WORKLOAD} | lengths,
        "seconds": {way: [round(total, 1) for total in found] for way, found in totals.items()},
        "median": {way: round(statistics.median(found), 1) for way, found in totals.items()},
        "spread": {way: spread(found) for way, found in totals.items()},
        "programs": turns,
        "stages_of_gpo": inside,
        "tried_for_trl": {"what": "seconds a step, behind a first one; not counted", "settings": tried},
    }


def claims_of(found: dict[str, Any]) -> list[Claim]:
    """At least three times TRL's way, near the limit; what is said of why is of the first round."""
    median, varied = found["median"], found["spread"]
    trl, limit = found["programs"]["trl"][0], found["programs"]["limit"][0]
    stages = found["stages_of_gpo"]
    train, sample = stages["train 1"], stages["generate 1"]
    rest = found["seconds"]["gpo"][0] - train - sample
    of_trl = (
        f"training is {trl['trl-train'] / sum(trl.values()):.0%} of TRL's way, and gpo trains "
        f"{trl['trl-train'] / train:.1f} times as fast: {EXPLAINED}"
    )
    of_limit = (
        f"training takes {train - limit['limit-train']:+.0f} s, sampling and scoring "
        f"{sample - limit['limit-generate'] - limit['limit-score']:+.0f} s against the parts alone, all else "
        f"{rest:.0f} s: {EXPLAINED}"
    )
    return [
        at_least(
            "end to end: TRL's way / gpo, time",
            round(median["trl"] / median["gpo"], 3),
            3.0,
            max(filter(None, (varied["trl"], varied["gpo"])), default=None),
            of_trl,
        ),
        at_most(
            "end to end: gpo / the limit, time",
            round(median["gpo"] / median["limit"], 3),
            1.15,
            max(filter(None, (varied["limit"], varied["gpo"])), default=None),
            of_limit,
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
    tried = found["tried_for_trl"]["settings"]
    steps = ", ".join(f"{one['attention']} {one['pairs_a_pass']}: {one['seconds']} s" for one in tried)
    lines += ["", f"DPOTrainer's step by attention and pairs a pass, {steps}; the fastest was taken"]
    return "\n".join([*lines, "", *claim_lines(claims_of(found))])


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument("--prompts-file", type=Path, default=HERE.parent / "configs/data/quickstart_train.jsonl")
    # gpo takes 2.3 s a prompt on two cores with AMX, and has to take five minutes.
    parser.add_argument("--prompts", type=int, default=170)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--step-prompts", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--least-minutes", type=float, default=5.0, help="of gpo's way and of TRL's")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.prompts < TRIED_STEPS * options.step_prompts:
        parser.error(f"--prompts: at least {TRIED_STEPS} times --step-prompts, to try DPOTrainer's settings on")
    options.dtype = measured_dtype(options.dtype)
    found = measure(options)
    print(markdown(found))
    write_report(found, claims_of(found), options.output)


if __name__ == "__main__":
    main()
