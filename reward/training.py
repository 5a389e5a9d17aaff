"""Training a reward model, backbone and all, as one worker of a training does it.
What it is: data and model in, step checkpoints on the way, a published checkpoint with `training_metrics.json` out; a
worker that is started again goes on from the last whole step checkpoint, and ends with the same weights. What it is
not: it starts no other workers (`gpo.rewards.training` and the launch scripts do): it finds them by torch.distributed.

A training leaves below its output directory: `training/steps` while it runs, `training/best` where more than one
checkpoint is kept, `training/metrics.jsonl`, `training/tensorboard` where that is asked for.
"""

import dataclasses
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from reward.best_checkpoints import BestCheckpoints
from reward.checkpoint import load_tokenizer, publish
from reward.checkpoint_files import METRICS_FILE, read_object, write_object
from reward.compute_type import compute_type, device_here
from reward.encoded_pairs import PairEncoder
from reward.encoding import ConversationEncoder
from reward.errors import RewardInputError
from reward.pair_evaluation import reported
from reward.pair_metrics import correct_pairs
from reward.pair_model import PairModel
from reward.pair_sources import PairSource
from reward.publishing import publish_model, whole_state
from reward.sharding import argument_values, check_sharding, tell_zero3, use_one_device
from reward.starting_model import open_model
from reward.step_plan import Share
from reward.trainer import WHOLE, PairTrainer, last_whole_checkpoint
from reward.training_data import TrainingData, read_data
from reward.training_log import Heartbeat, MetricsFile, Trackers
from reward.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What a worker is told."""

    backbone: str
    """A language model, or a reward model to continue."""
    train: tuple[PairSource, ...]
    heldout: tuple[PairSource, ...] = ()
    output: str
    settings: TrainingSettings
    stream_buffer: int = 0
    """Groups in the shuffle buffer of a stream; 0: data are read at once."""
    collective_seconds: int = 1800
    """Deadline of everything that workers do together."""

    @property
    def folder(self) -> Path:
        """Of everything but the result."""
        return Path(self.output) / "training"


def train_pairs(task: TrainingTask) -> Report | None:
    """Train to the end; the first worker returns the report, the others None."""
    started = time.perf_counter()
    task = _settled(task)
    settings = task.settings
    check_sharding(settings.sharding)
    tokenizer = load_tokenizer(task.backbone, settings.trust_remote_code)
    model = PairModel(open_model(task.backbone, settings), settings)
    if settings.sharding == "zero3":
        tell_zero3(model)
    # After the model: from here on transformers would open models in ZeRO-3's pieces.
    arguments = TrainingArguments(**_argument_values(task, model))
    use_one_device(arguments)
    heartbeat = Heartbeat(task.folder / "alive")
    policies, vocabulary = model.model.settings, model.model.vocabulary
    encoder = PairEncoder(ConversationEncoder(tokenizer, policies, settings.max_length, vocabulary), heartbeat.beat)
    share = Share(
        rank=arguments.process_index,
        world=arguments.world_size,
        accumulation=settings.accumulation,
        share_beginnings=model.shares_beginnings,
        with_answers=settings.sft_weight > 0,
    )
    data = read_data(task.train, task.heldout, task.stream_buffer, settings, encoder, share)
    best = None
    if data.heldout:
        best = BestCheckpoints(task.folder / "best", settings.best_metric, settings.more_is_better, settings.keep_best)
    resumed = last_whole_checkpoint(task.folder / "steps")
    if resumed is not None:
        _check_workers(resumed, arguments.world_size, settings.sharding)
    step = int(resumed.name.rpartition("-")[2]) if resumed else 0
    lines = MetricsFile(task.folder / "metrics.jsonl", data.epochs)
    if arguments.process_index == 0:
        _tidy(task, resumed, step, best, lines)
    callbacks = [lines, heartbeat, Trackers(settings.trackers if arguments.process_index == 0 else (), task.folder)]
    trainer = PairTrainer(model, arguments, data.passes, data.heldout, best, tokenizer, callbacks)
    trainer.agree(step, "start from step checkpoint", "output must lie on a file system that all machines share")
    trainer.agree(16 if settings.precision == "bfloat16" else 32, "compute in so many bits:", "set dtype")
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    report = _finish(trainer, task, data, started)
    heartbeat.close()
    return report


def _settled(task: TrainingTask) -> TrainingTask:
    """With the compute type of this machine where none is asked for."""
    if task.settings.precision != "auto":
        return task
    chosen: dict[str, Any] = {"precision": compute_type("bfloat16", device_here())}
    return dataclasses.replace(task, settings=dataclasses.replace(task.settings, **chosen))


def _argument_values(task: TrainingTask, model: PairModel) -> dict[str, Any]:
    settings = task.settings
    return {
        "output_dir": str(task.folder / "steps"),
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "lr_scheduler_type": "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        "warmup_steps": settings.warmup_ratio,
        "num_train_epochs": 1.0,  # The plan counts the epochs: to the trainer all steps are one.
        "max_steps": settings.max_steps if task.stream_buffer and settings.max_steps else -1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.accumulation,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "eval_strategy": "steps" if settings.evaluate_steps and task.heldout else "no",
        "eval_steps": settings.evaluate_steps or None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
        "ddp_timeout": task.collective_seconds,
        "ddp_find_unused_parameters": False,
        **argument_values(settings, model, task.collective_seconds),
    }


def _check_workers(resumed: Path, workers: int, sharding: str) -> None:
    """A training goes on to the bit with as many workers only; in pieces it cannot go on otherwise at all."""
    before = read_object(resumed / WHOLE).get("workers")
    if before == workers:
        return
    said = f"{resumed} was written by {before} workers, and {workers} go on"
    if sharding != "none":
        raise RewardInputError(
            f"{said}: sharding is {sharding}; expected as many as before, or delete it to start anew"
        )
    logger.warning("%s: losses agree to rounding, weights not to the bit", said)


def _tidy(
    task: TrainingTask, resumed: Path | None, step: int, best: BestCheckpoints | None, lines: MetricsFile
) -> None:
    """Take away what a training that was stopped left behind its last whole checkpoint."""
    for path in (task.folder / "steps").glob("checkpoint-*"):
        if path != resumed:
            shutil.rmtree(path, ignore_errors=True)
    if best is not None:
        best.forget_after(step)
    lines.forget_after(step)
    if resumed is not None:
        logger.info("going on after step %d", step)


def _finish(trainer: PairTrainer, task: TrainingTask, data: TrainingData, started: float) -> Report | None:
    """Evaluate where the last step was not, and put the best (or the last) model in place."""
    history = trainer.state.log_history
    evaluated = [line for line in history if "eval_loss" in line]
    if data.heldout and (not evaluated or evaluated[-1]["step"] != trainer.state.global_step):
        trainer.evaluate()
    if len(trainer.heldout_values) != len(trainer.heldout):
        # It went on from a checkpoint of the last step, which an earlier start had evaluated.
        trainer.score_heldout()
    best = trainer.best
    kept = best is not None and trainer.first_says(lambda: bool(best.kept()))
    state = None if kept else whole_state(trainer)
    if trainer.args.process_index != 0:
        trainer.accelerator.wait_for_everyone()
        return None
    chosen = best.kept()[0] if best is not None and kept else None
    _put_in_place(trainer, task, state, None if chosen is None else chosen.directory)
    report = _report(trainer, task, data, started, trainer.state.global_step if chosen is None else chosen.step)
    write_object(Path(task.output) / METRICS_FILE, report)
    shutil.rmtree(task.folder / "steps", ignore_errors=True)
    if task.settings.keep_best == 1:
        shutil.rmtree(task.folder / "best", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return report


def _put_in_place(trainer: PairTrainer, task: TrainingTask, state: Any, chosen: Path | None) -> None:
    if chosen is None:
        publish_model(trainer, state, Path(task.output))
        return
    staging = task.folder / ".result"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(chosen, staging)
    publish(staging, Path(task.output))
    shutil.rmtree(staging, ignore_errors=True)


def _report(trainer: PairTrainer, task: TrainingTask, data: TrainingData, started: float, best_step: int) -> Report:
    history = trainer.state.log_history
    evaluations = [line for line in history if "eval_loss" in line]
    last = next((line for line in reversed(evaluations) if line["step"] == best_step), None)
    losses = [line["loss"] for line in history if "loss" in line]
    correct = correct_pairs([pair.pair for pair in trainer.heldout], trainer.heldout_values[:, 0])
    return {
        "format_version": FORMAT_VERSION,
        "output_dir": task.output,
        "backbone": task.backbone,
        "settings": dataclasses.asdict(task.settings),
        "data": data.counts(),
        "steps": trainer.state.global_step,
        "best_step": best_step,
        "workers": trainer.args.world_size,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "heldout": None if last is None else reported(_evaluation(last), [pair.pair for pair in trainer.heldout]),
        "seconds": time.perf_counter() - started,
        "heldout_correct_of_last_step": [
            {"group": pair.pair.group, "correct": value} for pair, value in zip(trainer.heldout, correct, strict=True)
        ],
    }


def _evaluation(line: dict[str, float]) -> dict[str, float]:
    """The metrics in a line of the log."""
    return {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}
