"""`gpo reward train`: checks, and the way from a config to a trained model.

Heads on a frozen backbone are trained in this process (`reward.head_training`); a whole model by the workers of a Ray
Train run (`gpo.rewards.workers`).
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import relative
from gpo.config.reward import RewardTrainConfig, SourceConfig, sources_of
from gpo.errors import UserError
from gpo.files import write_text
from gpo.hub import push_reward_model
from gpo.logs import Progress
from gpo.rewards.checks import check_sources, check_training
from gpo.rewards.output import begin, check_ours, clear, held, is_finished
from gpo.rewards.workers import run_training
from reward.checkpoint_files import METRICS_FILE

logger = logging.getLogger(__name__)

__all__ = ["RewardTrainConfig", "train_reward_model", "training_task"]

LARGEST_COLLECTIVE_SECONDS = 1800
_DEFAULTS: dict[str, dict[str, Any]] = {
    "heads": {"learning_rate": 3e-3, "weight_decay": 0.01, "schedule": "linear", "epochs": 60, "batch_pairs": 256},
    "full": {"learning_rate": 2e-6, "weight_decay": 0.0, "schedule": "cosine", "epochs": 2.0, "batch_pairs": 32},
    "adapter": {"learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "cosine", "epochs": 2.0, "batch_pairs": 32},
}


def train_reward_model(config: RewardTrainConfig, *, fresh: bool = False) -> int:
    """Train, save, say what came out; returns the exit status. Raises UserError for the caller's mistakes."""
    from reward.errors import RewardInputError

    try:
        check_training(config)
        status = _train_heads(config) if config.tune == "heads" else _train_whole(config, fresh)
    except RewardInputError as error:
        raise UserError(str(error)) from None
    push_reward_model(config)
    return status


def with_defaults(config: RewardTrainConfig) -> RewardTrainConfig:
    """The config without None where `tune` has a default."""
    values = {name: value for name, value in _DEFAULTS[config.tune].items() if getattr(config, name) is None}
    return config.model_copy(update=values)


def training_task(config: RewardTrainConfig) -> Any:
    """What a worker of a whole-model training is told; raises RewardInputError for settings that do not fit."""
    from reward.pair_sources import PairSource
    from reward.training import TrainingTask
    from reward.training_settings import AdapterSettings, TrainingSettings

    filled = with_defaults(config)
    renamed = {"accumulation": filled.gradient_accumulation_steps, "precision": filled.dtype}
    adapter = AdapterSettings(**filled.adapter.model_dump()) if filled.tune == "adapter" else None
    names = set(TrainingSettings.__dataclass_fields__) & set(RewardTrainConfig.model_fields) - {"adapter"}
    given: dict[str, Any] = {name: getattr(filled, name) for name in names} | renamed
    return TrainingTask(
        backbone=str(Path(config.backbone).absolute()),
        train=tuple(PairSource(**_absolute(source.model_dump())) for source in sources_of(config.train)),
        heldout=tuple(PairSource(**_absolute(source.model_dump())) for source in sources_of(config.heldout)),
        output=str(Path(config.output).absolute()),
        settings=TrainingSettings(**given, adapter=adapter),
        stream_buffer=config.stream_buffer,
        collective_seconds=int(min(config.cluster.wait_seconds, LARGEST_COLLECTIVE_SECONDS)),
    )


def _absolute(source: dict[str, Any]) -> dict[str, Any]:
    """Ray gives workers a folder of their own."""
    path = source["path"]
    return source if path.startswith("hub:") else source | {"path": str(Path(path).absolute())}


def _train_heads(config: RewardTrainConfig) -> int:
    from gpo.cpu import prepare_process

    train, heldout = _read_whole(config.train, config.loss), _read_whole(config.heldout, config.loss)
    prepare_process(len(os.sched_getaffinity(0)))
    from reward.head_training import HeadTrainingSettings, train_heads

    filled = with_defaults(config)
    shared = set(HeadTrainingSettings.__dataclass_fields__) & set(RewardTrainConfig.model_fields)
    values = {name: getattr(filled, name) for name in shared} | {"epochs": int(filled.epochs or 1)}
    settings = HeadTrainingSettings(**values)
    bars: dict[int, Progress] = {}

    def progress(done: int, total: int) -> None:
        bars.setdefault(total, Progress("reading the backbone's states", total, "tokens")).update(done)

    report = train_heads(config.backbone, train, heldout, config.output, settings, config.cache, progress)
    write_card(config)
    logger.info(
        "%s: accuracy %s training pairs, %s held-out pairs; heads took %.1f s",
        relative(Path(config.output)),
        _share(vars(report.train)),
        _share(vars(report.heldout)),
        report.head_seconds,
    )
    return 0


def _read_whole(given: str | tuple[SourceConfig, ...] | None, loss: str) -> Any:
    """Every pair of some sources, and what was left out."""
    from reward.pair_sources import PairSource, load_pairs
    from reward.pairs import LoadedPairs

    parts = [load_pairs(PairSource(**source.model_dump()), loss == "margin") for source in sources_of(given)]
    pairs = tuple(pair for part in parts for pair in part.pairs)
    return LoadedPairs(pairs, sum(part.duplicates for part in parts), sum(part.ties for part in parts))


def _share(split: dict[str, Any]) -> str:
    """Accuracy with its interval, and of how many pairs, from training_metrics.json."""
    from reward.pair_metrics import wilson_interval

    if split["accuracy"] is None:
        return f"unknown on {split['pairs']:.0f}"
    low, high = split.get("accuracy_ci95") or wilson_interval(split["accuracy"], split["pairs"])
    return f"{split['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {split['pairs']:.0f}"


def write_card(config: RewardTrainConfig) -> None:
    """The model card of a finished training, with its metrics."""
    from gpo.cards import CARD, reward_card
    from reward.settings import saved_settings

    metrics = json.loads((Path(config.output) / METRICS_FILE).read_text("utf-8"))
    if config.tune == "heads":
        metrics = {name: metrics[name] for name in ("train", "heldout")}
    conventions = saved_settings(Path(config.output))
    write_text(Path(config.output) / CARD, reward_card(config.model_dump(mode="json"), metrics, conventions))
    output = relative(Path(config.output))
    if conventions.card_compatible:
        logger.info("%s: conventions %s", output, conventions.described)
    elif config.tune != "heads":  # Of heads, saving has said so in this very process.
        logger.warning("%s is %s", output, conventions.described)


def _train_whole(config: RewardTrainConfig, fresh: bool) -> int:
    if fresh:
        check_ours(config)
    elif is_finished(config):
        logger.info("%s is finished; --fresh trains it anew", relative(Path(config.output)))
        _tell(config)
        return 0
    task = training_task(config)
    check_sources(task)
    with held(config):
        if fresh:
            clear(config)
        if not is_finished(config):  # Another start may have finished it while this one read the data.
            begin(config)
            run_training(task, config)
            write_card(config)
    _tell(config)
    return 0


def _tell(config: RewardTrainConfig) -> None:
    output = Path(config.output)
    report = json.loads((output / METRICS_FILE).read_text("utf-8"))
    if config.dtype == "auto":
        chosen = report["settings"]["precision"]
        logger.info("dtype: %s, by the instructions of the machine that trained; dtype=… overrides it", chosen)
    found = report["heldout"]
    measured = "no held-out pairs"
    if found is not None:
        measured = f"accuracy {_share(found)} held-out pairs at step {report['best_step']}, "
        measured += f"calibration error {found['calibration_error']:.3f}"
    logger.info(
        "%s: loss %.4f to %.4f in %d steps; %s",
        relative(output),
        report["first_loss"],
        report["last_loss"],
        report["steps"],
        measured,
    )
