"""What a learner process does: rows of an iteration's shards in, master weights and a published checkpoint out.

Run by Ray Train on each worker (`gpo.training` starts them). A worker that is started again goes on from its last
step checkpoint, or from the beginning; either way the result is the same.
"""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.cpu import use_threads
from gpo.files import append_json_line, write_json
from gpo.logs import log_to_file


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerTask:
    """All that a worker needs to know; plain values, so that it travels."""

    config: dict[str, Any]
    iteration: int
    policy: str
    """The policy's own directory, for its tokenizer."""
    start: str
    """Directory of the weights to start from: master weights of the iteration before, or the policy."""
    shards: list[str]
    training: str
    checkpoint: str
    metrics: str
    logs: str
    threads: int


def train_worker(values: dict[str, Any]) -> None:
    """What one Ray Train worker does."""
    task = LearnerTask(**values)
    log_to_file(Path(task.logs), f"learner-{os.getpid()}")
    use_threads(task.threads)
    config = RunConfig.model_validate(task.config)
    if config.train.workers == 1:
        _work_alone()
    started = time.perf_counter()
    trainer, tokenizer = _make_trainer(task, config)
    prepared = time.perf_counter()
    step_checkpoint = _last_step_checkpoint(Path(task.training) / "steps")
    trainer.train(resume_from_checkpoint=step_checkpoint)
    trained = time.perf_counter()
    if trainer.is_world_process_zero():
        _publish(trainer, tokenizer, task, config)
        timings = {
            "prepare_seconds": prepared - started,
            "train_seconds": trained - prepared,
            "publish_seconds": time.perf_counter() - trained,
        }
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        report = {
            "steps": trainer.state.global_step,
            "rows": len(trainer.train_dataset),
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
        }
        write_json(Path(task.training) / "report.json", report | timings)


def _work_alone() -> None:
    """A single learner needs no DDP around its model, which costs a copy of all gradients and a pass over the graph."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def training_rows(shards: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each answer of each prompt: ids and target."""
    from rollout.records import read_shard

    for shard in shards:
        for row in read_shard(Path(shard)):
            for completion_ids, target in zip(row.completion_ids, row.target, strict=True):
                yield {
                    "prompt_id": row.prompt_id,
                    "prompt_ids": row.prompt_ids,
                    "completion_ids": completion_ids,
                    "target": target,
                }


def _make_trainer(task: LearnerTask, config: RunConfig) -> tuple[Any, Any]:
    from datasets import Dataset

    from gpo.forward import load_policy, load_tokenizer
    from gpo.trainer import GPOTrainer

    trust = config.policy.trust_remote_code
    rows = [row for row in training_rows(task.shards) if row["completion_ids"]]
    tokenizer = load_tokenizer(Path(task.policy), trust)
    model = load_policy(Path(task.start), attention=config.policy.attention, trust_remote_code=trust)
    trainer = GPOTrainer(
        model=model,
        args=_trainer_arguments(task, config),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_metrics_callback(task)],
    )
    return trainer, tokenizer


def _trainer_arguments(task: LearnerTask, config: RunConfig) -> Any:
    from gpo.trainer import GPOConfig

    train = config.train
    return GPOConfig(
        output_dir=str(Path(task.training) / "steps"),
        learning_rate=train.learning_rate,
        optim={"rmsprop": "rmsprop", "adamw": "adamw_torch"}[train.optimizer],
        lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup_ratio,
        num_train_epochs=train.epochs,
        batch_prompts=train.batch_prompts // train.gradient_accumulation_steps,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        length_power=train.length_power,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        bf16=config.policy.dtype == "bfloat16",
        fp16=config.policy.dtype == "float16",
        seed=config.seed + task.iteration,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or 500,
        save_total_limit=1,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=not _cuda(),
    )


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _metrics_callback(task: LearnerTask) -> Any:
    """Each logged step becomes a line of metrics.jsonl, which is the truth that trackers copy."""
    from transformers import TrainerCallback

    class MetricsFile(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero and logs and "loss" in logs:
                numbers = {key: value for key, value in logs.items() if isinstance(value, int | float)}
                line = {"iteration": task.iteration, "step": state.global_step, "steps": state.max_steps, **numbers}
                append_json_line(Path(task.metrics), line)

    return MetricsFile()


def _last_step_checkpoint(folder: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _publish(trainer: Any, tokenizer: Any, task: LearnerTask, config: RunConfig) -> None:
    """Write master weights, the canary's numbers, and the checkpoint in compute type; each whole when it exists."""
    import torch

    from gpo.forward import token_logps
    from rollout.canary import canary_rows
    from rollout.weights import mark_published

    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    logps = token_logps(model, canary_rows(tokenizer), config.policy.dtype)
    write_json(Path(task.training) / "canary.json", {"answer_logps": [row.tolist() for row in logps]})
    _save_whole(Path(task.training) / "master", model, tokenizer)
    dtype = getattr(torch, config.policy.dtype)
    model.config.dtype = dtype
    _save_whole(Path(task.checkpoint), model.to(dtype), tokenizer)
    mark_published(Path(task.checkpoint), f"{task.iteration:03d}")
    shutil.rmtree(Path(task.training) / "steps", ignore_errors=True)


def _save_whole(target: Path, model: Any, tokenizer: Any) -> None:
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(target)
