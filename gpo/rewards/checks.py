"""What is checked before a reward model is trained, whoever starts it: `gpo reward train`, or torchrun."""

from pathlib import Path
from typing import Any

from gpo.config.reward import RewardTrainConfig, sources_of
from gpo.errors import UserError
from gpo.modelfiles import has_chat_template, parameter_count, read_model_config
from gpo.trackers import check_installed


def check_training(config: RewardTrainConfig) -> None:
    """Config, backbone and installation; raises UserError or RewardInputError."""
    backbone = Path(config.backbone)
    read_model_config(backbone)
    parameter_count(backbone)
    if any(source.template for source in sources_of(config.train)) and not has_chat_template(backbone):
        raise UserError(f"backbone = {backbone}: its tokenizer has no chat template")
    if backbone.resolve() == Path(config.output).resolve():
        raise UserError(f"output = {config.output}: it is the backbone itself; expected another directory")
    check_installed(config.trackers, "trackers")
    # Whether a cluster's machines have GPUs, which fsdp2 needs, only they can tell.
    if config.sharding != "none" and (config.cluster.address is None or config.sharding != "fsdp2"):
        from reward.sharding import check_sharding

        check_sharding(config.sharding)


def check_for_torchrun(config: RewardTrainConfig) -> None:
    """`check_training`, and that this is a training for several processes."""
    if config.tune == "heads":
        raise UserError(
            "tune = heads: trains in one process, which torchrun would repeat in each of its own; use `gpo reward "
            "train`, or set tune to full or adapter"
        )
    check_training(config)


def check_sources(task: Any) -> None:
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
