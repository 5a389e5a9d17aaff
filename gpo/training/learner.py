"""What a learner process does: rows of an iteration's shards in, master weights and a published checkpoint out.

Run by Ray Train on each worker (`gpo.training.stage` starts them). A worker that is started again goes on from its last
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
from gpo.cpu import prepare_process
from gpo.files import append_json_line, write_json
from gpo.logs import log_to_file
from gpo.training.step_checkpoints import PREFIX, drop_torn, how_held, last_whole, remove
from gpo.training.workers import load_whole_again, sharding_arguments, threads_of_worker, whole_state, work_alone


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerTask:
    """All that a worker needs to know; plain values, so that it travels."""

    config: dict[str, Any]
    iteration: int
    policy: str
    """The policy's own directory, for its tokenizer."""
    start: str
    """Directory of the weights to start from: master weights of the iteration before, or the policy."""
    anchor: str
    """Directory of the policy that `train.pull` pulls to."""
    shards: list[str]
    training: str
    checkpoint: str
    metrics: str
    logs: str
    threads: int
    """0: by the cores of the node that the worker comes to."""


def train_worker(values: dict[str, Any]) -> None:
    """What one Ray Train worker does."""
    task = LearnerTask(**values)
    log_to_file(Path(task.logs), f"learner-{os.getpid()}")
    prepare_process(task.threads or threads_of_worker())
    config = RunConfig.model_validate(task.config)
    if config.train.workers == 1:
        work_alone()
    started = time.perf_counter()
    trainer, tokenizer = _make_trainer(task, config)
    prepared = time.perf_counter()
    steps = Path(task.training) / "steps"
    checkpoint = last_whole(steps, how_held(trainer))
    if trainer.is_world_process_zero():
        drop_torn(steps)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained = time.perf_counter()
    publish(trainer, tokenizer, task, config)
    if trainer.is_world_process_zero():
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
            "stopped": trainer.stopped,
        }
        write_json(Path(task.training) / "report.json", report | timings)
        _drop_steps(Path(task.training) / "steps")


def _drop_steps(steps: Path) -> None:
    """What only a resume of this iteration needs goes last: a learner killed until here repeats no step."""
    for checkpoint in steps.glob(f"{PREFIX}*"):
        remove(checkpoint)
    shutil.rmtree(steps, ignore_errors=True)


def training_rows(shards: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each answer that is trained on: ids, target, and the score that answers are ranked by."""
    from rollout.records import read_shard

    for shard in shards:
        for row in read_shard(Path(shard)):
            for k, reason in enumerate(row.left_out):
                if reason:
                    continue
                yield {
                    "prompt_id": row.prompt_id,
                    "prompt_ids": row.prompt_ids,
                    "completion_ids": row.completion_ids[k],
                    "target": row.target[k],
                    "score": row.score[k],
                }


def _make_trainer(task: LearnerTask, config: RunConfig) -> tuple[Any, Any]:
    from datasets import Dataset

    from gpo.training.trainer import GPOTrainer
    from reward.checkpoint import load_tokenizer

    trust = config.policy.trust_remote_code
    # Before any model: with ZeRO-3 the arguments make transformers load each worker's piece only.
    args = _trainer_arguments(task, config)
    rows = [row for row in training_rows(task.shards) if row["completion_ids"]]
    tokenizer = load_tokenizer(Path(task.policy), trust)
    anchor = None
    if config.train.pull:
        anchor = _policy_in(task.anchor, config)
    trainer = GPOTrainer(
        model=_starting_model(task, config),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        anchor_model=anchor,
        peft_config=_adapter(config) if not _has_adapter(task) else None,
        callbacks=[_metrics_callback(task)],
    )
    return trainer, tokenizer


def _starting_model(task: LearnerTask, config: RunConfig) -> Any:
    """Master weights of the iteration before, or the policy, with the adapter of the iteration before."""
    from peft import PeftModel

    model = _policy_in(task.policy if _has_adapter(task) else task.start, config)
    return PeftModel.from_pretrained(model, task.start, is_trainable=True) if _has_adapter(task) else model


def _policy_in(directory: str, config: RunConfig) -> Any:
    from gpo.training.forward import load_policy

    policy = config.policy
    return load_policy(
        Path(directory),
        attention=policy.attention,
        device=_device(),
        compute_dtype=policy.dtype,
        trust_remote_code=policy.trust_remote_code,
    )


def _has_adapter(task: LearnerTask) -> bool:
    return (Path(task.start) / "adapter_config.json").is_file()


def _adapter(config: RunConfig) -> Any:
    from peft import LoraConfig

    lora = config.train.lora
    if lora is None:
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it, whole or not
        lora_dropout=lora.dropout,
        target_modules=lora.modules,
        task_type="CAUSAL_LM",
    )


def _trainer_arguments(task: LearnerTask, config: RunConfig) -> Any:
    from gpo.training.trainer import GPOConfig

    train = config.train
    sharding = sharding_arguments(train.sharding) if train.workers > 1 else {}
    dtype = config.policy.dtype
    return GPOConfig(
        output_dir=str(Path(task.training) / "steps"),
        objective=train.objective,
        select=train.select,
        select_n=train.select_n,
        standardise=train.standardise,
        clamp=config.target.clamp,
        beta=train.pair_beta,
        pull=train.pull,
        sft=train.sft,
        length_power=train.length_power,
        learning_rate=train.learning_rate,
        optim={"rmsprop": "rmsprop", "adamw": "adamw_torch"}[train.optimizer],
        lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup_ratio,
        num_train_epochs=train.epochs,
        batch_prompts=train.batch_prompts,
        batch_tokens=train.batch_tokens,
        layout=train.layout,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing is True,
        activation_offloading=train.activation_offload,
        # TRL's default sets every dropout to 0, an adapter's too.
        disable_dropout=train.lora is None or train.lora.dropout == 0,
        precompute_ref_log_probs=train.reference == "once",
        reference_folder=task.training,
        stop_kl=train.stop.kl,
        stop_length_growth=train.stop.length_growth,
        stop_collapse=train.stop.collapse,
        stop_window=train.stop.window,
        compute_dtype="bfloat16" if sharding and dtype == "bfloat16" else "auto",
        bf16=dtype == "bfloat16" and not sharding,
        fp16=dtype == "float16",
        seed=config.seed + task.iteration,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or 500,
        # Two: the newest may be torn by a kill.
        save_total_limit=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        **{"use_cpu": _device() == "cpu", **sharding},
    )


def _device() -> str:
    from reward.compute_type import device_here

    return device_here()


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


def publish(trainer: Any, tokenizer: Any, task: LearnerTask, config: RunConfig) -> None:
    """Write master weights, the canary's numbers, and the checkpoint in compute type; each whole when it exists.

    Every worker calls this: only together do they hold all weights of a sharded model.
    """
    import torch

    from gpo.training.forward import load_policy, token_logps
    from gpo.training.log_probs import add_log_prob_head
    from rollout.canary import canary_rows
    from rollout.weights import mark_published

    training, sharded = Path(task.training), config.train.sharding != "none" and config.train.workers > 1
    state = whole_state(trainer) if sharded else None
    load_whole_again()
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    _save_whole(training / "master", model, tokenizer, state)
    mark_published(training / "master", f"{task.iteration:03d}")
    if sharded:
        asked, trust = config.policy.attention, config.policy.trust_remote_code
        # The device is full of this worker's piece, so the whole is looked at on the CPU.
        model = load_policy(training / "master", attention=asked, device="cpu", trust_remote_code=trust)
        add_log_prob_head(model)
    if config.train.lora is not None:
        model = model.merge_and_unload(adapter_names=["default"])
    model.eval()
    logps = token_logps(model, canary_rows(tokenizer), config.policy.dtype)
    write_json(training / "canary.json", {"answer_logps": [row.tolist() for row in logps]})
    dtype = getattr(torch, config.policy.dtype)
    model.config.dtype = dtype
    _save_whole(Path(task.checkpoint), model.to(dtype), tokenizer)
    mark_published(Path(task.checkpoint), f"{task.iteration:03d}")


def _save_whole(target: Path, model: Any, tokenizer: Any, state: dict[str, Any] | None = None) -> None:
    """A plain directory; `state` are the weights where the model itself holds only pieces of them."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(part, selected_adapters=["default"])
    else:
        model.save_pretrained(part, state_dict=state)
    tokenizer.save_pretrained(part)
    part.rename(target)
