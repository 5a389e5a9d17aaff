"""How fast and in how much memory the trainer moves a policy: ours, TRL's DPOTrainer, and the plain step as the limit.

Run: nice python benchmarks/training.py --model models/smollm2-135m-instruct --output training.json

The same rows for everybody: pairs of answers to a prompt, for TRL as chosen and rejected, with a live reference and
loss `sppo_hard`; for us as K = 2 answers with targets, our one reference pass counted in. Tokens are those of prompt
and answer of every row, unpadded, counted once, also where we compute a prompt once for both answers. Every way runs
in a process of its own, so that its peak memory is its own. All keep freed memory: ours and the plain step by the
malloc that the learner has, TRL's by glibc's, because with ours its many wide tensors of ever new sizes take 11 to 16
GiB and more time. The first two steps are not counted: they meet memory that is new to the process.
`computed_tokens` of a way are those that its forward passes see, padding counted and a shared prompt once: where both
sides are bound by the same matrix products, as in float32, their ratio is about the most that there is to win.

    plain      forward and backward with full logits, a row at a time and in dense batches of equal length; no optimizer
    step       our step alone: forward, backward, clip, optimizer
    ours       the same with the reference pass
    trl        DPOTrainer in each of its settings that are tried; the fastest counts

`--dtype auto` is bfloat16 where the CPU has matrix instructions for it, else float32: without them torch's bfloat16
products are tens of times slower. `--part cost` shows the cost against answer length and K, prompts shared or not.
`benchmarks/training_ways.py` says what each way does.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.frame import Claim, at_least, at_most, claim_lines, measured_dtype, write_report  # noqa: E402
from benchmarks.training_ways import malloc_of  # noqa: E402

TRL_TRIES = [(1, "eager"), (2, "eager"), (4, "eager"), (8, "eager"), (4, "sdpa")]
LAYOUTS = ("packed", "shared")


def part_main(args: argparse.Namespace) -> None:
    """One way in this process; its numbers as one JSON line."""
    from benchmarks import training_ways
    from gpo.cpu import prepare_process

    prepare_process(args.threads)
    found = {"ours": training_ways.ours, "trl": training_ways.trl, "plain": training_ways.plain}[args.way](args)
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print("RESULT " + json.dumps(found), flush=True)


def measure(args: argparse.Namespace, way: str, **changes: Any) -> dict[str, Any]:
    """A way in a process of its own."""
    values = {**vars(args), "way": way, **changes}
    words = [sys.executable, __file__]
    for name, value in values.items():
        if name in ("output", "part", "trl_tries") or value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        words += [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment = {**os.environ, **quiet, **malloc_of(way), "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"failed": done.stderr[-600:]}
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    label = " ".join(f"{name}={value}" for name, value in changes.items())
    print(f"{way:6} {label:40} {found['tokens_per_second']:8.1f} tokens/s {found['peak_gib']:6.2f} GiB", flush=True)
    return {**changes, **found}


def side_by_side(args: argparse.Namespace) -> dict[str, Any]:
    plain = [measure(args, "plain", attention=attention) for attention in ("eager", "sdpa")]
    ours = [measure(args, "ours", layout=layout) for layout in LAYOUTS]
    tries = TRL_TRIES[: args.trl_tries]
    trl = [measure(args, "trl", batch=batch, attention=attention) for batch, attention in tries]
    limit = max(way.get("tokens_per_second", 0) for way in plain)
    best = max(ours, key=lambda way: way.get("tokens_per_second", 0))
    rival = max(trl, key=lambda way: way.get("tokens_per_second", 0))
    ratios = {
        "ours_over_trl": best["tokens_per_second"] / rival["tokens_per_second"],
        "peak_over_trl": best["peak_gib"] / rival["peak_gib"],
        "step_over_plain": {way["layout"]: way["step_tokens_per_second"] / limit for way in ours},
    }
    return {"plain": plain, "ours": ours, "trl": trl, "ratios": ratios}


def claims_of(ratios: dict[str, Any]) -> list[Claim]:
    """What the trainer promises, for bfloat16 where it is not emulated."""
    return [
        at_least("training: ours / TRL's DPOTrainer, tokens a second", round(ratios["ours_over_trl"], 3), 4.0),
        at_most("training: ours / TRL's DPOTrainer, peak memory", round(ratios["peak_over_trl"], 3), 0.5),
        at_least(
            "training: our step / the plain one, tokens a second, prompts not shared",
            round(ratios["step_over_plain"]["packed"], 3),
            0.9,
        ),
        at_least(
            "training: our step / the plain one, tokens a second, prompts shared",
            round(ratios["step_over_plain"]["shared"], 3),
            1.0,
        ),
    ]


def cost(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Our step against K and answer length, at about the same number of row tokens."""
    found = []
    for samples, words in ((2, 40), (4, 40), (8, 40), (4, 120)):
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
    parser.add_argument("--part", choices=["side-by-side", "cost", "all"], default="all")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--pairs", type=int, default=40, help="prompts in the data")
    parser.add_argument("--step-pairs", type=int, default=8, help="prompts a step, for us and for TRL")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--prompt-words", type=int, nargs=2, default=[20, 60])
    parser.add_argument("--answer-words", type=int, nargs=2, default=[20, 100])
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trl-tries", type=int, default=len(TRL_TRIES), help="how many of TRL's settings are tried")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--layout", default="shared", help=argparse.SUPPRESS)
    parser.add_argument("--attention", default="eager", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = measured_dtype(args.dtype)
    if args.way:
        part_main(args)
        return
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(args).items() if k != "output"}}
    claims: list[Claim] = []
    if args.part in ("side-by-side", "all"):
        result["side_by_side"] = side_by_side(args)
        claims = claims_of(result["side_by_side"]["ratios"])
        print("\n".join(claim_lines(claims)))
    if args.part in ("cost", "all"):
        result["cost"] = cost(args)
    write_report(result, claims, args.output)


if __name__ == "__main__":
    main()
