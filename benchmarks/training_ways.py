"""What `benchmarks/training.py` measures: our trainer, TRL's DPOTrainer and the plain step on the same rows.

Each way takes the command line's values, runs in a process of its own and gives tokens a second: those of prompt and
answer of every row, unpadded, counted once.
"""

import argparse
import random
import tempfile
import time
from typing import Any

from benchmarks.frame import WARM_UP, WORDS


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


class StepClock:
    """Seconds of every step."""

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


def our_trainer(args: argparse.Namespace, folder: str, **more: Any) -> Any:
    """Ours on the rows."""
    from datasets import Dataset

    from gpo.training.trainer import GPOConfig, GPOTrainer

    model, tokenizer = load(args, "eager")
    values = common_arguments(args, folder)
    config = GPOConfig(**values, batch_prompts=args.step_pairs, batch_tokens=args.batch_tokens, layout=args.layout)

    class Timed(GPOTrainer):
        """Keeps the seconds of each reference pass."""

        passes: list[float] = []

        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            # Memory is new to the process: not counted, as the first steps are not.
            super()._precompute_ref_logps(*arguments)
            started = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments)
            self.passes.append(time.perf_counter() - started)
            return found

    return Timed(model, config, Dataset.from_list(rows_of(args)), tokenizer, **more)


def ours(args: argparse.Namespace) -> dict[str, Any]:
    from gpo.training.batches import Steps

    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(args, folder, callbacks=[clock.callback()])
        steps = Steps(trainer.train_dataset, trainer._plan(shuffle=True))
        sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in trainer.train_dataset]
        tokens = [sum(sizes[row] for row in steps[0, place]["row"].tolist()) for place in range(len(steps))]
        computed = sum(part["input_ids"].numel() for place in range(len(steps)) for part in steps[0, place]["parts"])
        trainer.train()
    reference = trainer.passes[0] / sum(tokens)
    step = sum(clock.seconds[WARM_UP:]) / sum(tokens[WARM_UP:])
    return {
        "tokens_per_second": 1 / (reference + step),
        "step_tokens_per_second": 1 / step,
        "reference_tokens_per_second": 1 / reference,
        "row_tokens": sum(tokens),
        "computed_tokens": computed,
    }


def trl(args: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load(args, args.attention)
    rows, clock, tokens, computed = rows_of(args), StepClock(), [0], [0]
    pairs = [
        {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
        for one, other in zip(rows[0::2], rows[1::2], strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            **{**common_arguments(args, folder), "gradient_checkpointing": args.checkpointing == "on"},
            loss_type="sppo_hard",
            beta=0.1,
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=max(1, args.step_pairs // args.batch),
            precompute_ref_log_probs=False,
        )
        trainer = DPOTrainer(
            model,
            None,
            config,
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            callbacks=[clock.callback()],
        )
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            batch = collate(examples)
            tokens.append(int(batch["attention_mask"].sum()))
            computed.append(batch["attention_mask"].numel())
            return batch

        trainer.data_collator = counted
        trainer.train()
    # Batches are fetched one after the other, so they fall to the steps in order.
    each = max(1, args.step_pairs // args.batch)
    step = sum(clock.seconds[WARM_UP:]) / sum(tokens[1 + WARM_UP * each :])
    return {"tokens_per_second": 1 / step, "row_tokens": sum(tokens), "computed_tokens": sum(computed)}


def plain(args: argparse.Namespace) -> dict[str, Any]:
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
        for _ in range(WARM_UP + 1):
            started = time.perf_counter()
            for batch in batches:
                rows = torch.tensor(batch)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
                    logits = model(input_ids=rows, use_cache=False).logits
                F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten()).backward()
            seconds = time.perf_counter() - started
        found[name] = sum(len(row) for batch in batches for row in batch) / seconds
    return {"tokens_per_second": max(found.values()), "ways": found}
