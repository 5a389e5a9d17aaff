"""How fast and in how much memory the trainer moves a policy: ours, TRL's DPOTrainer, and the plain step as the limit.

Run: nice python benchmarks/training.py --model models/smollm2-135m-instruct --output training.json

The same rows for everybody: pairs of answers to a prompt, for TRL as chosen and rejected, with a live reference and
loss `sppo_hard`; for us as K = 2 answers with targets, our one reference pass counted in. Tokens are those of prompt
and answer of every row, unpadded, counted once, also where we compute a prompt once for both answers. Every way runs
in a process of its own, so that its peak memory is its own, with the malloc of our learner, which keeps freed memory:
TRL's trainer is faster and smaller with it too. The first two steps are not counted: they meet memory that is new to
the process.
`computed_tokens` of a way are those that its forward passes see, padding counted and a shared prompt once: where both
sides are bound by the same matrix products, as in float32, their ratio is about the most that there is to win.

    plain      forward and backward with full logits, a row at a time and in dense batches of equal length; no optimizer
    ours       our trainer in both layouts; its step (forward, backward, clip, optimizer) is told by itself too
    trl        DPOTrainer in each of its settings that are tried

Ways take turns, `--rounds` times. All settings of the plain step and of TRL are tried in the first round, and the
fastest of each stays for the rest. Ratios are of the fastest ways within a round; their medians are told. A way that
fails ends all: without a setting the peer might look slower than it is.

`--dtype auto` is bfloat16 where the CPU has matrix instructions for it, else float32: without them torch's bfloat16
products are tens of times slower. `--part cost` shows the cost against answer length and K, prompts shared or not, and
`--part profile` where the time and the memory of our step go. `benchmarks/training_ways.py` says what each way does,
`benchmarks/operators.py` what the profile counts as what.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.frame import (  # noqa: E402
    Claim,
    at_least,
    at_most,
    claim_lines,
    measured_dtype,
    over_rounds,
    write_report,
)
from benchmarks.training_profile import profile_table  # noqa: E402
from gpo.cpu import keeping_malloc  # noqa: E402

TRL_TRIES = [
    {"batch": 8, "attention": "eager", "checkpointing": "off"},
    {"batch": 4, "attention": "eager", "checkpointing": "off"},
    {"batch": 2, "attention": "eager", "checkpointing": "off"},
    {"batch": 1, "attention": "eager", "checkpointing": "off"},
    {"batch": 4, "attention": "sdpa", "checkpointing": "off"},
    {"batch": 8, "attention": "eager", "checkpointing": "on"},
]
"""The fastest so far first, for calls that try a few. Checkpointing is TRL's default; without it a step is faster and
larger."""
LAYOUTS = ("packed", "shared")
PARTS = ("side-by-side", "cost", "profile")
PROFILED = "[profile](training.md#measured)"
Way = dict[str, Any]
"""A way's settings and what was measured of it."""


def part_main(args: argparse.Namespace) -> None:
    """One way in this process; its numbers as one JSON line."""
    from benchmarks import training_profile, training_ways
    from gpo.cpu import prepare_process

    prepare_process(args.threads)
    ways = {"ours": training_ways.ours, "trl": training_ways.trl, "plain": training_ways.plain}
    found = {**ways, "profile": training_profile.profile}[args.way](args)
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print("RESULT " + json.dumps(found), flush=True)


def measure(args: argparse.Namespace, way: str, **changes: Any) -> Way:
    """A way in a process of its own; ends this program with status 1 and the way's error where it fails."""
    values = {**vars(args), "way": way, **changes}
    words = [sys.executable, __file__]
    for name, value in values.items():
        if name in ("output", "part", "trl_tries", "rounds") or value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        words += [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment = {**os.environ, **quiet, **keeping_malloc(), "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    label = " ".join(f"{name}={value}" for name, value in changes.items())
    if done.returncode or not lines:
        sys.exit(f"{way} {label}: failed with status {done.returncode}; its last words:\n{done.stderr[-3000:]}")
    found: Way = json.loads(lines[0].removeprefix("RESULT "))
    if "tokens_per_second" in found:
        speed, peak = found["tokens_per_second"], found["peak_gib"]
        print(f"{way:6} {label:46} {speed:8.1f} tokens/s {peak:6.2f} GiB", flush=True)
    return {**changes, **found}


def fastest(ways: list[Way]) -> Way:
    """By tokens a second."""
    return max(ways, key=lambda way: way["tokens_per_second"])


def side_by_side(args: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn; of the plain step and of TRL all settings in the first round, then the fastest."""
    settings: dict[str, list[Way]] = {
        "plain": [{"attention": attention} for attention in ("eager", "sdpa")],
        "ours": [{"layout": layout} for layout in LAYOUTS],
        "trl": list(TRL_TRIES[: args.trl_tries]),
    }
    rounds: list[dict[str, list[Way]]] = []
    for _ in range(args.rounds):
        rounds.append({way: [measure(args, way, **one) for one in tried] for way, tried in settings.items()})
        for way in ("plain", "trl"):
            best = fastest(rounds[-1][way])
            settings[way] = [{name: best[name] for name in settings[way][0]}]
    return {"rounds": rounds, "taken": {way: settings[way][0] for way in ("plain", "trl")}, "ratios": ratios_of(rounds)}


def ratios_of(rounds: list[dict[str, list[Way]]]) -> dict[str, dict[str, Any]]:
    """Of the fastest ways within each round, and their medians."""
    best = [{way: fastest(tried) for way, tried in one.items()} for one in rounds]

    def ratio(name: str, way: str, other: str) -> dict[str, Any]:
        return over_rounds([one[way][name] / one[other][name] for one in best])

    def step(layout: str) -> dict[str, Any]:
        found = [next(way for way in one["ours"] if way["layout"] == layout) for one in rounds]
        pairs = zip(found, best, strict=True)
        return over_rounds([own["step_tokens_per_second"] / one["plain"]["tokens_per_second"] for own, one in pairs])

    return {
        "ours_over_trl": ratio("tokens_per_second", "ours", "trl"),
        "peak_over_trl": ratio("peak_gib", "ours", "trl"),
        "computed_tokens_trl_over_ours": ratio("computed_tokens", "trl", "ours"),
        "step_over_plain_packed": step("packed"),
        "step_over_plain_shared": step("shared"),
    }


def claims_of(ratios: dict[str, dict[str, Any]]) -> list[Claim]:
    """What the trainer promises, for bfloat16 where it is not emulated."""
    speed, peak = ratios["ours_over_trl"], ratios["peak_over_trl"]
    packed, shared = ratios["step_over_plain_packed"], ratios["step_over_plain_shared"]
    computed = ratios["computed_tokens_trl_over_ours"]["median"]
    slow = f"of these rows TRL computes only {computed:.2f} times our tokens, by the same products: "
    large = "weights, gradients and optimizer state are the same for both: "
    step = "training: our step / the plain one, tokens a second, prompts "
    return [
        at_least(
            "training: ours / TRL's DPOTrainer, tokens a second", speed["median"], 4.0, speed["spread"], slow + PROFILED
        ),
        at_most(
            "training: ours / TRL's DPOTrainer in its fastest setting, peak memory",
            peak["median"],
            0.5,
            peak["spread"],
            large + PROFILED,
        ),
        at_least(step + "not shared", packed["median"], 0.9, packed["spread"]),
        at_least(step + "shared", shared["median"], 1.0, shared["spread"]),
    ]


def markdown(found: dict[str, Any]) -> str:
    """Every way that stayed, the settings of TRL that were tried, the claims."""
    rounds, taken = found["rounds"], found["taken"]
    shown = [("plain", taken["plain"]), *(("ours", {"layout": layout}) for layout in LAYOUTS), ("trl", taken["trl"])]
    lines = ["", "| way | settings | median tokens/s | rounds | peak GiB |", "|---|---|---:|---:|---:|"]
    for way, wanted in shown:
        ways = [one for turn in rounds for one in turn[way] if all(one[name] == wanted[name] for name in wanted)]
        speeds, peak = [one["tokens_per_second"] for one in ways], max(one["peak_gib"] for one in ways)
        every = ", ".join(f"{speed:.0f}" for speed in speeds)
        lines.append(f"| {way} | {_told(wanted)} | {statistics.median(speeds):.0f} | {every} | {peak:.2f} |")
    tried = [f"* {_told(one, TRL_TRIES[0])}: {one['tokens_per_second']:.0f} tokens/s" for one in rounds[0]["trl"]]
    return "\n".join(
        [*lines, "", "TRL's settings, each tried once:", *tried, "", *claim_lines(claims_of(found["ratios"]))]
    )


def _told(settings: Way, names: Way | None = None) -> str:
    return ", ".join(f"{name} {settings[name]}" for name in names or settings)


def cost(args: argparse.Namespace) -> list[Way]:
    """Our step against K and answer length, at about the same number of row tokens."""
    found = []
    for samples, words in ((2, 40), (4, 40), (8, 40), (4, 120), (4, 240)):
        prompts = max(2, args.pairs * 2 // samples)
        for layout in LAYOUTS:
            changes = {"samples": samples, "answer_words": [words, words], "layout": layout, "pairs": prompts}
            found.append(measure(args, "ours", **changes, step_pairs=max(1, prompts // 4)))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--pairs", type=int, default=40, help="prompts in the data")
    parser.add_argument("--step-pairs", type=int, default=8, help="prompts a step, for us and for TRL")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--prompt-words", type=int, nargs=2, default=[20, 60])
    parser.add_argument("--answer-words", type=int, nargs=2, default=[20, 100])
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trl-tries", type=int, default=len(TRL_TRIES), help="how many of TRL's settings are tried")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--layout", default="shared", help=argparse.SUPPRESS)
    parser.add_argument("--attention", default="eager", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=4, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", choices=["on", "off"], default="off", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = measured_dtype(args.dtype)
    if args.way:
        part_main(args)
        return
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(args).items() if k != "output"}}
    claims: list[Claim] = []
    if "side-by-side" in args.part:
        result["side_by_side"] = side_by_side(args)
        claims = claims_of(result["side_by_side"]["ratios"])
        print(markdown(result["side_by_side"]))
    if "cost" in args.part:
        result["cost"] = cost(args)
    if "profile" in args.part:
        result["profile"] = measure(args, "profile")
        print(profile_table(result["profile"]))
    write_report(result, claims, args.output)


if __name__ == "__main__":
    main()
