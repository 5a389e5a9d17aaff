"""How fast and in how much memory the trainer moves a policy: ours, TRL's DPOTrainer, and the plain step as the limit.

Run: nice python benchmarks/training.py --model models/smollm2-135m-instruct --output training.json

The same rows for everybody: pairs of answers to a prompt, for TRL as chosen and rejected, with a live reference and loss
`sppo_hard`; for us as K = 2 answers with targets, our one reference pass counted in. Tokens are those of prompt and
answer of every row, unpadded, counted once, also where we compute a prompt once for both answers. Every way runs in a
process of its own, so that its peak memory is its own; all keep freed memory. The first step of each is not counted.

    plain      forward and backward with full logits, a row at a time and in dense batches of equal length; no optimizer
    step       our step alone: forward, backward, clip, optimizer
    ours       the same with the reference pass
    trl        DPOTrainer in each of its settings that are tried; the fastest counts

`--dtype auto` is bfloat16 where the CPU has matrix instructions for it, else float32: without them torch's bfloat16
products are tens of times slower. `--part cost` shows the cost against answer length and K, prompts shared or not.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = (HERE / "scoring.py").read_text("utf-8").split('WORDS = """')[1].split('"""')[0].split()
TRL_TRIES = [(1, "eager"), (2, "eager"), (4, "eager"), (8, "eager"), (4, "sdpa")]
LAYOUTS = ("packed", "shared")


def make_rows(prompts: int, samples: int, prompt: tuple[int, int], answer: tuple[int, int]) -> list[dict[str, Any]]:
    """Texts of words drawn from a list, the same at every run; lengths in words, about as many tokens."""
    draw = random.Random(20_241)

    def text(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(fewest, most)))

    rows = []
    for number in range(prompts):
        question = text(*prompt) + ":"
        for k in range(samples):
            row = {"prompt_id": str(number), "prompt": question, "completion": " " + text(*answer)}
            rows.append({**row, "target": 1.0 - 2.0 * k / (samples - 1)})
    return rows


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    return make_rows(args.pairs, args.samples, tuple(args.prompt_words), tuple(args.answer_words))


def chosen_dtype(asked: str) -> str:
    """bfloat16 where the CPU is made for it."""
    import torch

    if asked != "auto":
        return asked
    return "bfloat16" if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


class StepClock:
    """Seconds and tokens of every step but the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Clock(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                clock._started = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clock.seconds.append(time.perf_counter() - clock._started)

        return Clock()


def common_arguments(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "learning_rate": 5e-7,
        "optim": "rmsprop",
        "num_train_epochs": 1,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1000,
        "bf16": args.dtype == "bfloat16",
        "use_cpu": True,
        "max_length": None,
    }


def load(args: argparse.Namespace, attention: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation=attention)
    return model, AutoTokenizer.from_pretrained(args.model)


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset

    from gpo.batches import Steps
    from gpo.trainer import GPOConfig, GPOTrainer

    model, tokenizer = load(args, "eager")
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        values = common_arguments(args, folder)
        config = GPOConfig(
            **values, batch_prompts=args.step_pairs, batch_tokens=args.batch_tokens, layout=args.layout
        )
        passes: list[float] = []

        class Timed(GPOTrainer):
            def _pass(self, *arguments: Any) -> Any:
                started = time.perf_counter()
                found = super()._pass(*arguments)
                passes.append(time.perf_counter() - started)
                return found

        trainer = Timed(
            model, config, Dataset.from_list(rows_of(args)), tokenizer, callbacks=[clock.callback()]
        )
        steps = Steps(trainer.train_dataset, trainer._plan(shuffle=True))
        sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in trainer.train_dataset]
        tokens = [sum(sizes[row] for row in steps[0, place]["row"].tolist()) for place in range(len(steps))]
        trainer.train()
    reference = passes[0] / sum(tokens)
    step = sum(clock.seconds[1:]) / sum(tokens[1:])
    return {
        "tokens_per_second": 1 / (reference + step),
        "step_tokens_per_second": 1 / step,
        "reference_tokens_per_second": 1 / reference,
        "row_tokens": sum(tokens),
    }


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load(args, args.attention)
    rows, clock, tokens = rows_of(args), StepClock(), [0]
    pairs = [
        {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
        for one, other in zip(rows[0::2], rows[1::2], strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            **common_arguments(args, folder),
            loss_type="sppo_hard",
            beta=0.1,
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=max(1, args.step_pairs // args.batch),
            precompute_ref_log_probs=False,
        )
        trainer = DPOTrainer(
            model, None, config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer,
            callbacks=[clock.callback()],
        )
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            batch = collate(examples)
            tokens.append(int(batch["attention_mask"].sum()))
            return batch

        trainer.data_collator = counted
        trainer.train()
    # Batches are fetched one after the other, so they fall to the steps in order.
    each = max(1, args.step_pairs // args.batch)
    step = sum(clock.seconds[1:]) / sum(tokens[1 + each :])
    return {"tokens_per_second": 1 / step, "row_tokens": sum(tokens)}


def run_plain(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    model, tokenizer = load(args, args.attention)
    model.train()
    ids = [tokenizer(row["prompt"] + row["completion"])["input_ids"] for row in rows_of(args)]
    equal = sum(len(row) for row in ids) // len(ids)
    dense = [(row * 2)[:equal] for row in ids]
    ways = {"row by row": [[row] for row in ids[: args.step_pairs]]}
    ways["dense"] = [dense[start : start + 4] for start in range(0, len(dense), 4)][: max(1, args.step_pairs // 4)]
    found: dict[str, Any] = {}
    for name, batches in ways.items():
        for counted in (False, True):
            started = time.perf_counter()
            for batch in batches if counted else batches[:1]:
                rows = torch.tensor(batch)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
                    logits = model(input_ids=rows, use_cache=False).logits
                F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten()).backward()
            seconds = time.perf_counter() - started
        found[name] = sum(len(row) for batch in batches for row in batch) / seconds
    return {"tokens_per_second": max(found.values()), "ways": found}


def part_main(args: argparse.Namespace) -> None:
    """One way in this process; its numbers as one JSON line."""
    sys.path.insert(0, str(HERE.parent))
    from gpo.cpu import use_threads

    use_threads(args.threads)
    found = {"ours": run_ours, "trl": run_trl, "plain": run_plain}[args.way](args)
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
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(HERE.parent)}
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


def cost(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Our step against K and answer length, at about the same number of row tokens."""
    found = []
    for samples, words in ((2, 40), (4, 40), (8, 40), (4, 120)):
        prompts = max(2, args.pairs * 2 // samples)
        for layout in LAYOUTS:
            changes = {"samples": samples, "answer_words": [words, words], "layout": layout, "pairs": prompts}
            found.append(measure(args, "ours", **changes, step_pairs=max(1, prompts // 2)))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", choices=["side-by-side", "cost", "all"], default="all")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--pairs", type=int, default=24, help="prompts in the data")
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
    args.dtype = chosen_dtype(args.dtype)
    if args.way:
        part_main(args)
        return
    machine = {"cpu": platform.processor() or platform.machine(), "threads": args.threads, "dtype": args.dtype}
    result: dict[str, Any] = {"machine": machine, "settings": {k: v for k, v in vars(args).items() if k != "output"}}
    if args.part in ("side-by-side", "all"):
        result["side_by_side"] = side_by_side(args)
        print(json.dumps(result["side_by_side"]["ratios"], indent=2))
    if args.part in ("cost", "all"):
        result["cost"] = cost(args)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
