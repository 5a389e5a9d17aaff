"""`gpo reward bench` and `gpo reward cyclic`: judge reward models, and compare kinds of them."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, add_scorer_options, count, quiet_libraries, request_of


def add_bench(reward: Verbs) -> None:
    """`gpo reward bench`."""
    bench = reward.add_parser(
        "bench",
        help="RewardBench subsets and sections, LLMBar, or any pairs",
        description="Writes pairs.jsonl (a row a pair) and bench.json (subsets, sections, intervals). Data: a file or "
        "folder of RewardBench rows (`prompt`, `chosen`, `rejected`, `subset`), LLMBar files, preference pairs, or "
        "hub:allenai/reward-bench:filtered. Section weights are the published ones.",
        epilog="example: gpo reward bench --model models/quickstart-gpm --data llmbar/ --output runs/bench",
    )
    bench.add_argument("--model", type=Path, required=True, metavar="DIR", help="GPM or Bradley-Terry model")
    bench.add_argument("--data", required=True, metavar="PATH", help="file, folder, or hub:NAME[:SPLIT]")
    bench.add_argument("--output", type=Path, required=True, metavar="DIR")
    bench.add_argument("--ties", choices=("half", "wrong"), default="half", help="a score of 0 (published: wrong)")
    add_scorer_options(bench)
    bench.add_argument("--max-length", type=count, metavar="N", help="tokens kept (default: 4096 or the context)")
    bench.add_argument("--limit", type=count, metavar="N", help="only the first N pairs")
    bench.set_defaults(verb=_bench)


def add_cyclic(reward: Verbs) -> None:
    """`gpo reward cyclic`."""
    cyclic = reward.add_parser(
        "cyclic",
        help="GPM against Bradley-Terry on cyclic preferences",
        description="Trains both models with the same settings, and writes cyclic.json (accuracy next to the "
        "best that any scalar reward can reach), the models, and a picture of the GPM's embeddings. Without --data: "
        'plain cycles. --data: a win table {"answers": {…}, "wins": [[winner, loser], …]}, a type chart as in '
        "poke-env, preference pairs, or answers with ratings by several criteria.",
        epilog="example: gpo reward cyclic configs/reward_cyclic.yaml cycles=[3,4] --output runs/cyclic",
    )
    cyclic.add_argument("config", type=Path, nargs="?", help="YAML file (default: the defaults)")
    cyclic.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    cyclic.add_argument("--data", type=Path, metavar="FILE", help="preferences of your own")
    cyclic.add_argument("--output", type=Path, required=True, metavar="DIR")
    cyclic.add_argument(
        "--check",
        action="store_true",
        help="status 1 unless the GPM is right on every pair and BT within its limit",
    )
    cyclic.set_defaults(verb=_cyclic)


def _bench(options: argparse.Namespace) -> int:
    from gpo.rewards.bench import BenchRequest, bench_rewards

    request = request_of(BenchRequest, options)
    quiet_libraries()
    return bench_rewards(request)


def _cyclic(options: argparse.Namespace) -> int:
    from gpo.config.cyclic import CyclicConfig
    from gpo.rewards.cyclic import compare
    from gpo.settings import read_settings

    path, overrides = options.config, options.overrides
    if path is not None and "=" in str(path):
        # Without a file the first override stands in its place.
        path, overrides = None, [str(path), *overrides]
    config = read_settings(CyclicConfig, path, overrides)
    quiet_libraries()
    return compare(config, options.data, options.output, check=options.check)
