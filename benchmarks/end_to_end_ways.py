"""The programs that `benchmarks/end_to_end.py` compares with `gpo run`: one stage each, files between them.

    python -m benchmarks.end_to_end_ways STAGE --folder FOLDER --work WORK ...

`trl-*` is how a TRL user does it with kept libraries; `limit-*` calls the parts of gpo with nothing around them.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.training_ways import StepClock, common_arguments
from gpo.cpu import prepare_process

GENERATE_PROMPTS = 32
"""Prompts a batch of transformers' `generate`, as in benchmarks/rollout_transformers.py."""
TRL_TRIES = [{"pairs_a_pass": pairs, "attention": attention} for attention in ("sdpa", "eager") for pairs in (4, 8, 16)]
"""DPOTrainer's settings, of which the fastest is measured; fewer pairs a pass were slower each time."""
TRIED_STEPS = 3
"""A try is so many of DPOTrainer's steps; the first is not counted."""


def messages_of(folder: Path) -> list[list[dict[str, str]]]:
    """The prompts as conversations."""
    lines = (folder / "prompts.jsonl").read_text("utf-8").splitlines()
    return [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]


def in_groups(items: list[Any], size: int) -> list[list[Any]]:
    """Neighbours together, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def prompt_ids(tokenizer: Any, messages: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids up to where the answer begins."""
    texts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in messages]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def write_answers(work: Path, tokenizer: Any, ids: list[list[int]]) -> None:
    """K answers a prompt, prompt by prompt, as ids and as text."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    (work / "answers.json").write_text(json.dumps({"ids": ids, "texts": texts}), "utf-8")


def read_groups(options: argparse.Namespace) -> list[list[list[dict[str, str]]]]:
    """For each prompt its K conversations."""
    texts = json.loads((options.work / "answers.json").read_text("utf-8"))["texts"]
    return [
        [[*talk, {"role": "assistant", "content": text}] for text in answers]
        for talk, answers in zip(messages_of(options.folder), in_groups(texts, options.samples), strict=True)
    ]


def write_scores(options: argparse.Namespace, tables: list[list[list[float]]]) -> None:
    """Each answer's mean score against the others of its prompt."""
    scores = [[statistics.mean(row) for row in table] for table in tables]
    (options.work / "scores.json").write_text(json.dumps(scores), "utf-8")


def trl_generate(options: argparse.Namespace) -> None:
    """transformers' `generate` on left-padded batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepare_process(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    rows = prompt_ids(tokenizer, messages_of(options.folder))
    torch.manual_seed(0)
    answers: list[list[int]] = []
    for batch in in_groups(rows, GENERATE_PROMPTS):
        padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        with torch.inference_mode():
            found = model.generate(
                **padded,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=options.samples,
                max_new_tokens=options.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        for ids in found[:, padded["input_ids"].shape[1] :].tolist():
            answers.append(ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids)
    write_answers(options.work, tokenizer, answers)


def trl_score(options: argparse.Namespace) -> None:
    """The model card's way, a prompt at a time; then pairs, the best with the worst, inward."""
    from benchmarks.scoring_ways import CardWay

    prepare_process(options.threads)
    groups = read_groups(options)
    write_scores(options, CardWay(options.folder / "judge", options.dtype).score(groups))
    scores = json.loads((options.work / "scores.json").read_text("utf-8"))
    with (options.work / "pairs.jsonl").open("w", encoding="utf-8") as lines:
        for group, score in zip(groups, scores, strict=True):
            order = sorted(range(len(group)), key=lambda place, score=score: -score[place])  # type: ignore[misc]
            half = len(order) // 2
            for better, worse in zip(order[:half], reversed(order[half:]), strict=True):
                pair = {"prompt": group[0][:-1], "chosen": group[better][-1:], "rejected": group[worse][-1:]}
                lines.write(json.dumps(pair) + "\n")


def dpo_trainer(options: argparse.Namespace, pairs: list[Any], step_pairs: int, callbacks: list[Any]) -> Any:
    """DPOTrainer with the loss of SPPO and its live reference."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation=options.attention),
        None,
        DPOConfig(
            **common_arguments(options, str(options.work / "training")),
            loss_type="sppo_hard",
            beta=0.1,
            per_device_train_batch_size=options.pairs_a_pass,
            gradient_accumulation_steps=max(1, step_pairs // options.pairs_a_pass),
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=callbacks,
    )


def read_pairs(options: argparse.Namespace) -> list[Any]:
    """What `trl_score` wrote."""
    return [json.loads(line) for line in (options.work / "pairs.jsonl").read_text("utf-8").splitlines()]


def trl_try(options: argparse.Namespace) -> None:
    """Seconds of a DPOTrainer's step, behind a first one, with one batch size and attention."""
    prepare_process(options.threads)
    step_pairs = options.step_prompts * options.samples // 2
    clock = StepClock()
    dpo_trainer(options, read_pairs(options)[: TRIED_STEPS * step_pairs], step_pairs, [clock.callback()]).train()
    (options.work / "try.json").write_text(json.dumps(statistics.mean(clock.seconds[1:])))


def trl_train(options: argparse.Namespace) -> None:
    """DPOTrainer on the pairs, then its checkpoint."""
    prepare_process(options.threads)
    trainer = dpo_trainer(options, read_pairs(options), options.step_prompts * options.samples // 2, [])
    trainer.train()
    trainer.save_model(str(options.work / "checkpoint"))


def limit_generate(options: argparse.Namespace) -> None:
    """The engine with all prompts at once."""
    from rollout.engine import PolicyEngine, SampleRequest, Sampling
    from rollout.engine_settings import EngineSettings, prepare_environment

    settings = EngineSettings(max_model_len=512, dtype=options.dtype, threads=options.threads)
    prepare_environment(settings)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    talks = messages_of(options.folder)
    requests = [
        SampleRequest(str(number), talk, ids, 1000 * number)
        for number, (talk, ids) in enumerate(zip(talks, prompt_ids(tokenizer, talks), strict=True))
    ]
    engine = PolicyEngine(Path(options.model), settings)
    found = engine.sample(requests, Sampling(samples=options.samples, max_tokens=options.max_tokens), "start")
    write_answers(options.work, tokenizer, [ids for row in found for ids in row.completion_ids])


def limit_score(options: argparse.Namespace) -> None:
    """The scorer with all answers at once."""
    from benchmarks.scoring_ways import OurWay

    prepare_process(options.threads)
    write_scores(options, OurWay(options.folder / "judge", options.dtype, "transformers").score(read_groups(options)))


def limit_train(options: argparse.Namespace) -> None:
    """`GPOTrainer` alone, its reference pass counted in, then its checkpoint."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gpo import GPOConfig, GPOTrainer

    prepare_process(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = prompt_ids(tokenizer, messages_of(options.folder))
    answers = json.loads((options.work / "answers.json").read_text("utf-8"))["ids"]
    scores = json.loads((options.work / "scores.json").read_text("utf-8"))
    trainer = GPOTrainer(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
        GPOConfig(
            **common_arguments(options, str(options.work / "training")),
            batch_prompts=options.step_prompts,
            batch_tokens=options.batch_tokens,
        ),
        Dataset.from_list(
            [
                {"prompt_id": str(place), "prompt_ids": rows[place], "completion_ids": ids, "target": target}
                for place, (group, targets) in enumerate(zip(in_groups(answers, options.samples), scores, strict=True))
                for ids, target in zip(group, targets, strict=True)
            ]
        ),
        tokenizer,
    )
    trainer.train()
    trainer.save_model(str(options.work / "checkpoint"))


PROGRAMS = {
    "trl-generate": trl_generate,
    "trl-score": trl_score,
    "trl-try": trl_try,
    "trl-train": trl_train,
    "limit-generate": limit_generate,
    "limit-score": limit_score,
    "limit-train": limit_train,
}


def main() -> None:
    """One stage in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=sorted(PROGRAMS))
    parser.add_argument("--folder", type=Path, required=True, help="prompts.jsonl and the judge")
    parser.add_argument("--work", type=Path, required=True, help="what this way has written and writes")
    parser.add_argument("--model", required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--step-prompts", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pairs-a-pass", type=int, help="DPOTrainer's batch size")
    parser.add_argument("--attention", help="DPOTrainer's")
    options = parser.parse_args()
    PROGRAMS[options.stage](options)


if __name__ == "__main__":
    main()
