"""What a tournament costs against the number of checkpoints: `gpo tournament` as a user starts it, on SmolLM2-135M.

Run: nice python benchmarks/evaluation.py --output evaluation.json    (10 to 30 minutes on two cores; --quick: five)

Prompts of 5 to 20 words, answers of 10 to 40 words drawn from a list (the cost depends on their number only; the quick
start's are as long), a GPM of width 6 on SmolLM2-135M. Tournaments of three sizes, each with an empty cache and in a
process of its own, so start-up counts; for some rounds, every other one from the largest down, behind one of the
smallest that is not counted. The claim is that a further checkpoint costs the same among many as among few: its price
between the two larger sizes over that between the two smaller, within each round. (R^2 of a straight line through three
sizes shows little: it is 0.99 for times n + n^2/10.) Beside it: one `gpo eval`, what each of the N(N-1)/2 pairs would
cost by itself, and the limit, the bare embedding of one file. Then one tournament as large as AlpacaEval: ten
checkpoints' answers to 805 prompts.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.frame import MOST_GROWTH, WORDS, Claim, at_most, claim_lines, cost_growth, over_rounds, write_report  # noqa: E402

SIZES, QUICK_SIZES = (2, 5, 10), (2, 4, 8)
LINE_PROMPTS, QUICK_PROMPTS, LARGE_PROMPTS = 128, 32, 805


def write_answers(folder: Path, checkpoints: int, prompts: int, seed: int = 8) -> list[Path]:
    """Files of answers, the same at every run."""
    draw = random.Random(seed)

    def text(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(fewest, most))).capitalize() + "."

    questions = [f"{number}: {text(5, 20)}" for number in range(prompts)]
    paths = []
    for number in range(checkpoints):
        rows = [
            {"dataset": "words", "instruction": question, "output": text(10, 40), "generator": f"checkpoint-{number}"}
            for question in questions
        ]
        paths.append(folder / f"checkpoint-{number}.json")
        paths[-1].write_text(json.dumps(rows), "utf-8")
    return paths


def make_gpm(backbone: Path, target: Path) -> None:
    """Random heads: they cost what trained ones do."""
    from reward import GeneralPreferenceModel
    from reward.settings import RewardSettings

    GeneralPreferenceModel.from_backbone(backbone, RewardSettings.published(6, True), seed=1).save_pretrained(target)


def timed(*words: str | Path) -> float:
    """Seconds of a verb in its own process."""
    print(f"{datetime.now():%H:%M:%S} gpo {words[0]}, {len(words)} words", file=sys.stderr, flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "gpo", *map(str, words)], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.monotonic() - started


def bare_embedding(gpm: Path, path: Path) -> tuple[float, int]:
    """(seconds, tokens) of one file through the scorer alone, the model already loaded."""
    from gpo.cpu import prepare_process
    from reward import PreferenceScorer

    prepare_process(len(os.sched_getaffinity(0)))
    scorer = PreferenceScorer.from_pretrained(gpm, max_length=4096)
    rows = json.loads(path.read_text("utf-8"))
    talks = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    scorer.embed(talks[:64])
    started = time.monotonic()
    for start in range(0, len(talks), 64):
        scorer.embed(talks[start : start + 64])
    seconds = time.monotonic() - started
    return seconds, sum(len(row.input_ids) for row in scorer.encoder.encode(talks))


def tournaments(files: list[Path], judge: tuple[str, str], sizes: Sequence[int], rounds: int, folder: Path) -> Any:
    """Size -> seconds of each round."""

    def one(size: int, name: str) -> float:
        return timed("tournament", "--outputs", *files[:size], *judge, "--output", folder / name)

    one(min(sizes), "not-counted")
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds):
        for size in list(sizes)[:: -1 if turn % 2 else 1]:
            seconds[size].append(one(size, f"t{size}-{turn}"))
    return seconds


def measure(model: Path, prompts: int, sizes: Sequence[int], rounds: int, large: bool) -> dict[str, Any]:
    """Every number; `large`: the tournament of AlpacaEval's size as well."""
    with tempfile.TemporaryDirectory(prefix="evaluation-") as name:
        folder = Path(name)
        make_gpm(model, folder / "gpm")
        files = write_answers(folder, max(sizes), prompts)
        judge = ("--judge", f"gpm:{folder / 'gpm'}")
        seconds_by_size = tournaments(files, judge, sizes, rounds, folder)
        again = timed("tournament", "--outputs", *files, *judge, "--output", folder / f"t{max(sizes)}-0")
        pair = timed("eval", "--outputs", files[1], "--baseline", files[0], *judge, "--output", folder / "pair")
        bare, tokens = bare_embedding(folder / "gpm", files[0])
        whole = None
        if large:
            (folder / "large").mkdir()
            answers = write_answers(folder / "large", max(sizes), LARGE_PROMPTS)
            whole = round(timed("tournament", "--outputs", *answers, *judge, "--output", folder / "large" / "t"), 1)
    by_size = {size: over_rounds(found) for size, found in seconds_by_size.items()}
    seconds = [found["median"] for found in by_size.values()]
    slope, intercept = statistics.linear_regression(sizes, seconds)
    return {
        "prompts": prompts,
        "tokens_a_checkpoint": tokens,
        "tournaments": [{"checkpoints": size, "seconds": found} for size, found in by_size.items()],
        "seconds_a_checkpoint": round(slope, 3),
        "seconds_once": round(intercept, 3),
        "cost_growth": over_rounds([cost_growth(sizes, one) for one in zip(*seconds_by_size.values(), strict=True)]),
        "r_squared": round(statistics.correlation(sizes, seconds) ** 2, 5),
        "seconds_again_from_the_cache": round(again, 2),
        "seconds_of_one_pair": round(pair, 2),
        "seconds_of_all_pairs_by_themselves": round(pair * max(sizes) * (max(sizes) - 1) / 2, 1),
        "seconds_of_the_bare_embedding": round(bare, 2),
        "seconds_of_alpaca_evals_size": whole,
    }


def claims_of(found: dict[str, Any]) -> list[Claim]:
    """The cost is linear."""
    growth = found["cost_growth"]
    what = "tournament: cost of a further checkpoint, among many over among few"
    return [at_most(what, growth["median"], MOST_GROWTH, growth["spread"])]


def _size_line(checkpoints: int, seconds: dict[str, Any]) -> str:
    return f"| {checkpoints} | {seconds['median']:.1f} | {', '.join(map(str, seconds['rounds']))} |"


def markdown(found: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [
        f"{found['prompts']} prompts, {found['tokens_a_checkpoint']:,} tokens a checkpoint",
        "",
        "| checkpoints | seconds | of each round |",
        "|---:|---:|---:|",
        *(_size_line(row["checkpoints"], row["seconds"]) for row in found["tournaments"]),
        "",
        f"straight line: {found['seconds_a_checkpoint']:.2f} s a checkpoint and {found['seconds_once']:.1f} s once, "
        f"R^2 = {found['r_squared']}",
        f"a further checkpoint among many costs {found['cost_growth']['median']:.2f} times what it costs among few",
        f"again, everything in the cache: {found['seconds_again_from_the_cache']:.1f} s",
        f"one pair by itself (`gpo eval`): {found['seconds_of_one_pair']:.1f} s; all pairs so, by multiplication: "
        f"{found['seconds_of_all_pairs_by_themselves']:.0f} s",
        f"limit, the bare embedding of one checkpoint's answers: {found['seconds_of_the_bare_embedding']:.2f} s",
    ]
    if found["seconds_of_alpaca_evals_size"] is not None:
        whole, most = found["seconds_of_alpaca_evals_size"], found["tournaments"][-1]["checkpoints"]
        lines.append(f"{most} checkpoints x {LARGE_PROMPTS} prompts: {whole:.0f} s")
    return "\n".join([*lines, "", *claim_lines(claims_of(found))])


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON with every number, machine and versions")
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_PROMPTS} prompts, up to {max(QUICK_SIZES)} checkpoints"
    )
    parser.add_argument("--rounds", type=int, default=None, help="default 2, with --quick 1")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        parser.error(
            f"--model {options.model} has no config.json; `python scripts/smollm2.py {options.model}` makes it"
        )
    prompts, sizes = (QUICK_PROMPTS, QUICK_SIZES) if options.quick else (LINE_PROMPTS, SIZES)
    rounds = options.rounds or (1 if options.quick else 2)
    found = measure(options.model, prompts, sizes, rounds, large=not options.quick)
    print(markdown(found))
    write_report(found, claims_of(found), options.output)


if __name__ == "__main__":
    main()
