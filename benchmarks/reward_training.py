"""How fast and in how much memory reward models are trained: ours, TRL's RewardTrainer, the plain step as the limit.

Run: nice python benchmarks/reward_training.py --model models/smollm2-135m-instruct --output reward-training.json

The same pairs for everybody, rendered with the model's own template, in the same precision, with AdamW. Tokens are
those of both conversations of every pair, unpadded, counted for each, also where we compute a prompt once for both.
Every way runs in a process of its own, so that its peak memory is its own; all keep freed memory, by the
malloc of our learner, all take as many pairs a step, and the first two steps of each are not counted.
Ways take turns, `--rounds` times; of the attentions that are tried the fastest of a round counts, and of the ratios
within a round their median.

    plain  forward and backward of the backbone alone on as many tokens in dense rows of equal length: no padding, no
           head, no optimizer
    ours   reward.trainer with a GPM head: forward, backward, clipping, AdamW
    trl    RewardTrainer (Bradley-Terry), with each attention that is tried

`--dtype auto` is bfloat16 where the CPU has matrix instructions for it, else float32.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.frame import (  # noqa: E402
    WARM_UP,
    WORDS,
    Claim,
    at_least,
    at_most,
    claim_lines,
    measured_dtype,
    spread,
    write_report,
)
from benchmarks.training_ways import StepClock  # noqa: E402
from gpo.cpu import keeping_malloc  # noqa: E402

PEERS = "reward training: ours / TRL's RewardTrainer"
PLAIN = "reward training: ours / the plain step"
WHY = "TRL's trainer is an eighth faster with the malloc of ours: [more](reward-training.md#measured)"
WAYS = (("plain", "sdpa"), ("plain", "eager"), ("ours", "-"), ("trl", "sdpa"), ("trl", "eager"))


def make_pairs(count: int, prompt: tuple[int, int], answer: tuple[int, int]) -> list[dict[str, str]]:
    """Texts of words drawn from a list, the same at every run."""
    draw = random.Random(20_242)

    def text(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(fewest, most)))

    return [
        {"instruction": f"{number}: {text(*prompt)}?", "chosen": text(*answer), "rejected": text(*answer)}
        for number in range(count)
    ]


def encoded(options: argparse.Namespace) -> list[Any]:
    from transformers import AutoTokenizer

    from reward.encoded_pairs import PairEncoder
    from reward.encoding import ConversationEncoder
    from reward.pairs import pair_of_row
    from reward.settings import RewardSettings

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoder = PairEncoder(ConversationEncoder(tokenizer, RewardSettings.published(8), 2048))
    rows = make_pairs(options.pairs, tuple(options.prompt_words), tuple(options.answer_words))
    return list(encoder.encode([pair_of_row(row, str(number)) for number, row in enumerate(rows)]))


def steps_of(pairs: list[Any], size: int) -> list[list[Any]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def tokens_of(pairs: list[Any]) -> int:
    return sum(len(row) for pair in pairs for row in pair.rows)


def arguments(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "learning_rate": 1e-6,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1000,
        "bf16": options.dtype == "bfloat16",
        "use_cpu": True,
        "gradient_checkpointing": False,
    }


def run_plain(options: argparse.Namespace) -> list[float]:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(options.model, dtype=torch.float32, attn_implementation=options.attention)
    model.train()
    seconds = []
    for step in steps_of(encoded(options), options.batch):
        rows = 2 * len(step)
        ids = torch.randint(0, model.config.vocab_size, (rows, round(tokens_of(step) / rows)))
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"):
            states = model(input_ids=ids, use_cache=False).last_hidden_state
        states[:, -1].float().square().mean().backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds


def run_ours(options: argparse.Namespace) -> list[float]:
    from transformers import TrainingArguments

    from reward.pair_model import PairModel
    from reward.starting_model import open_model
    from reward.step_plan import PlannedPasses, Share
    from reward.trainer import PairTrainer
    from reward.training_settings import TrainingSettings

    settings = TrainingSettings(value_head_dim=8, gated=True, precision=options.dtype, batch_pairs=options.batch)
    pairs = encoded(options)
    groups = [[pair] for pair in pairs]
    steps = [[(0, place) for place in part] for part in steps_of(list(range(len(groups))), options.batch)]
    model = PairModel(open_model(options.model, settings), settings)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        values = {**arguments(options, folder), "remove_unused_columns": False, "per_device_train_batch_size": 1}
        passes = PlannedPasses([groups], steps, Share(share_beginnings=model.shares_beginnings))
        PairTrainer(model, TrainingArguments(**values), passes, callbacks=[clock.callback()]).train()
    return clock.seconds


def run_trl(options: argparse.Namespace) -> list[float]:
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32, attn_implementation=options.attention
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = []
    for row in make_pairs(options.pairs, tuple(options.prompt_words), tuple(options.answer_words)):
        ask = {"role": "user", "content": row["instruction"]}
        rows.append({side: [ask, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")})
    clock = StepClock()

    class InOrder(RewardTrainer):
        """The same pairs in the same steps as the others."""

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        values = {**arguments(options, folder), "per_device_train_batch_size": options.batch, "max_length": 2048}
        trainer = InOrder(
            model=model,
            args=RewardConfig(**values),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock.callback()],
        )
        trainer.train()
    return clock.seconds


def run_role(options: argparse.Namespace) -> None:
    """One way in this process; prints its numbers as the last line."""
    from gpo.cpu import prepare_process

    prepare_process(options.threads)
    seconds = {"plain": run_plain, "ours": run_ours, "trl": run_trl}[options.way](options)
    counted = steps_of(encoded(options), options.batch)[WARM_UP:]
    found = {
        "seconds": [round(one, 3) for one in seconds[WARM_UP:]],
        "pairs_per_second": sum(map(len, counted)) / sum(seconds[WARM_UP:]),
        "tokens_per_second": sum(map(tokens_of, counted)) / sum(seconds[WARM_UP:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn; ratios within each round, and their medians."""
    rounds: list[dict[str, dict[str, Any]]] = []
    for turn in range(options.rounds):
        rounds.append({})
        for way, attention in WAYS:
            print(f"round {turn + 1}: {way} {attention}", file=sys.stderr, flush=True)
            name = way if attention == "-" else f"{way} {attention}"
            rounds[-1][name] = start_role(options, way, attention)
    fastest = [{way: _fastest(one, way) for way in ("plain", "ours", "trl")} for one in rounds]
    return {
        "workload": {
            name: getattr(options, name) for name in ("pairs", "batch", "prompt_words", "answer_words", "dtype")
        },
        "ways": {name: _over_rounds([one[name] for one in rounds]) for name in rounds[0]},
        "ratios": {
            "pairs a second, ours / trl": _ratios(fastest, "pairs_per_second", "trl"),
            "tokens a second, ours / plain": _ratios(fastest, "tokens_per_second", "plain"),
            "peak memory, ours / trl": _ratios(fastest, "peak_mib", "trl"),
        },
    }


def _ratios(fastest: list[dict[str, dict[str, Any]]], value: str, other: str) -> dict[str, Any]:
    """Of ours to another way, in each round."""
    found = [one["ours"][value] / one[other][value] for one in fastest]
    return {"median": round(statistics.median(found), 3), "spread": spread(found)}


def _over_rounds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, but the highest peak; the seconds of all steps."""
    speeds = {name: statistics.median(one[name] for one in found) for name in ("pairs_per_second", "tokens_per_second")}
    peak = max(one["peak_mib"] for one in found)
    return {"seconds": [one["seconds"] for one in found], **speeds, "peak_mib": peak}


def claims_of(ratios: dict[str, dict[str, Any]]) -> list[Claim]:
    """What reward training promises."""
    pairs, tokens, peak = ratios.values()
    return [
        at_least(f"{PEERS}, pairs a second", pairs["median"], 1.8, pairs["spread"], WHY),
        at_least(f"{PLAIN}, tokens a second, prompts shared", tokens["median"], 1.0, tokens["spread"]),
        at_most(f"{PEERS}, peak memory", peak["median"], 1.0, peak["spread"]),
    ]


def start_role(options: argparse.Namespace, way: str, attention: str) -> dict[str, Any]:
    names = ("pairs", "batch", "threads", "dtype")
    command = [sys.executable, __file__, "--model", str(options.model), "--way", way, "--attention", attention]
    command += [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    for name in ("prompt_words", "answer_words"):
        command += [f"--{name.replace('_', '-')}", *map(str, getattr(options, name))]
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(options.threads)}
    environment = {**os.environ, **quiet, **keeping_malloc(), **ours}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _fastest(ways: dict[str, dict[str, Any]], way: str) -> dict[str, Any]:
    return max((one for name, one in ways.items() if name.split()[0] == way), key=lambda one: one["pairs_per_second"])


def table(report: dict[str, Any]) -> str:
    lines = [f"{'way':14} pairs/s  tokens/s  peak MiB"]
    for name, one in report["ways"].items():
        numbers = f"{one['pairs_per_second']:7.3f}  {one['tokens_per_second']:8.0f}  {one['peak_mib']:8.0f}"
        lines.append(f"{name:14} {numbers}")
    return "\n".join([*lines, "", *claim_lines(claims_of(report["ratios"]))])


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "smollm2-135m-instruct")
    parser.add_argument("--output", type=Path, help="JSON with every number")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--prompt-words", type=int, nargs=2, default=(20, 200))
    parser.add_argument("--answer-words", type=int, nargs=2, default=(20, 200))
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=("plain", "ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--attention", default="sdpa", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = measured_dtype(options.dtype)
    if options.way:
        run_role(options)
        return
    report = measure(options)
    print(table(report))
    write_report(report, claims_of(report["ratios"]), options.output)


if __name__ == "__main__":
    main()
