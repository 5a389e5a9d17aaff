"""`gpo reward train`: checks, and the way from a config to a trained model.

Heads on a frozen backbone are trained in this process (`reward.head_training`); a whole model by the workers of a Ray
Train run (`gpo.rewards.workers`).
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import relative
from gpo.config.reward import RewardTrainConfig, SourceConfig, sources_of
from gpo.errors import UserError
from gpo.files import write_json, write_text
from gpo.hub import push_reward_model
from gpo.logs import Progress
from gpo.modelfiles import has_chat_template, parameter_count, read_model_config
from gpo.rewards.workers import RESULT, run_training
from gpo.trackers import check_installed

logger = logging.getLogger(__name__)

__all__ = ["RewardTrainConfig", "train_reward_model", "training_task"]

LARGEST_COLLECTIVE_SECONDS = 1800
_PLACEMENT = ("cluster", "cache", "trackers", "save_steps", "hub")
"""Keys that may change when a training goes on; workers are not among them, because they change the last digits."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "heads": {"learning_rate": 3e-3, "weight_decay": 0.01, "schedule": "linear", "epochs": 60, "batch_pairs": 256},
    "full": {"learning_rate": 2e-6, "weight_decay": 0.0, "schedule": "cosine", "epochs": 2.0, "batch_pairs": 32},
    "adapter": {"learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "cosine", "epochs": 2.0, "batch_pairs": 32},
}


def train_reward_model(config: RewardTrainConfig, *, fresh: bool = False) -> int:
    """Train, save, say what came out; returns the exit status. Raises UserError for the caller's mistakes."""
    from reward.errors import RewardInputError

    backbone = Path(config.backbone)
    read_model_config(backbone)
    parameter_count(backbone)
    if any(source.template for source in sources_of(config.train)) and not has_chat_template(backbone):
        raise UserError(f"backbone = {backbone}: its tokenizer has no chat template")
    if backbone.resolve() == Path(config.output).resolve():
        raise UserError(f"output = {config.output}: it is the backbone itself; expected another directory")
    check_installed(config.trackers, "trackers")
    try:
        status = _train_heads(config) if config.tune == "heads" else _train_whole(config, fresh)
    except RewardInputError as error:
        raise UserError(str(error)) from None
    push_reward_model(config)
    return status


def with_defaults(config: RewardTrainConfig) -> RewardTrainConfig:
    """The config without None where `tune` has a default."""
    values = {name: value for name, value in _DEFAULTS[config.tune].items() if getattr(config, name) is None}
    if config.dtype == "auto" and config.tune != "heads":
        from reward.compute_type import compute_type, device_here

        values["dtype"] = compute_type("bfloat16", device_here())
        logger.info("dtype: %s, by the instructions of this machine; dtype=… overrides it", values["dtype"])
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
    from gpo.cpu import use_threads

    train, heldout = _read_whole(config.train, config.loss), _read_whole(config.heldout, config.loss)
    from reward.head_training import HeadTrainingSettings, train_heads

    use_threads(len(os.sched_getaffinity(0)))
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

    metrics = json.loads((Path(config.output) / RESULT).read_text("utf-8"))
    if config.tune == "heads":
        metrics = {name: metrics[name] for name in ("train", "heldout")}
    conventions = saved_settings(Path(config.output))
    write_text(Path(config.output) / CARD, reward_card(config.model_dump(mode="json"), metrics, conventions))
    if conventions.card_compatible:  # Where it is not, saving has said so.
        logger.info("%s: conventions %s", relative(Path(config.output)), conventions.described)


def _train_whole(config: RewardTrainConfig, fresh: bool) -> int:
    output = Path(config.output)
    if fresh:
        _clear(output)
    if is_finished(config):
        logger.info("%s is finished; --fresh trains it anew", relative(output))
    else:
        task = training_task(config)
        _check_sources(task)
        begin(config)
        run_training(task, config)
        write_card(config)
    _tell(output)
    return 0


def _clear(output: Path) -> None:
    """Delete what an earlier training left; raises UserError when it does not look like one."""
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / "training" / "config.json").is_file():
        raise UserError(
            f"output = {output}: --fresh would delete what is in it, but no `gpo reward train` wrote it; leave --fresh "
            "out or change output"
        )
    shutil.rmtree(output)


def begin(config: RewardTrainConfig) -> None:
    """Say whose output directory this is; a result of anything else in it does not count."""
    (Path(config.output) / RESULT).unlink(missing_ok=True)
    write_json(_written(config), config.model_dump(mode="json"))


def is_finished(config: RewardTrainConfig) -> bool:
    """Whether this very training is done; raises UserError when another one lies in the output directory."""
    if not _written(config).is_file():
        return False
    before, now = json.loads(_written(config).read_text("utf-8")), config.model_dump(mode="json")
    changed = [name for name in now if name not in _PLACEMENT and before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"output = {config.output}: holds a training with another {', '.join(changed)} (there "
            f"{before.get(changed[0])!r}, here {now[changed[0]]!r}); give another output, or --fresh to start anew"
        )
    return (Path(config.output) / RESULT).is_file()


def _written(config: RewardTrainConfig) -> Path:
    return Path(config.output) / "training" / "config.json"


def _check_sources(task: Any) -> None:
    """Read every row once, so that a bad one is told before anything starts; a stream and a hub only begin."""
    from reward.pair_sources import load_pairs, stream_pairs
    from reward.training_data import check_margins, check_metric

    hard_labels = task.settings.loss == "margin"
    read: dict[str, list[Any]] = {"train": [], "heldout": []}
    for name, sources in (("train", task.train), ("heldout", task.heldout)):
        for source in sources:
            if source.path.startswith("hub:") or (name == "train" and task.stream_buffer):
                next(stream_pairs(source, hard_labels), None)
                continue
            read[name] += load_pairs(source, hard_labels).pairs
    if read["train"]:
        check_margins(task.settings, read["train"])
    check_metric(task.settings, read["heldout"])


def _tell(output: Path) -> None:
    report = json.loads((output / RESULT).read_text("utf-8"))
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
