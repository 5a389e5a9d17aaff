"""`gpo reward train`: settings, files and the closing lines around `reward.head_training`."""

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gpo.cluster import relative
from gpo.errors import UserError
from gpo.files import write_text
from gpo.logs import Progress
from gpo.modelfiles import has_chat_template, parameter_count, read_model_config
from gpo.settings import Settings

logger = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RewardTrainConfig(Settings):
    """Training of a GPM or Bradley-Terry model: frozen backbone, heads trained on its states."""

    backbone: str
    """Hugging Face directory of the language model whose states are read."""
    train: str
    """Preference pairs: .json, .jsonl or .parquet with `chosen`/`rejected` messages, or `instruction` and texts."""
    heldout: str
    """Pairs that are only measured on."""
    output: str
    """Directory to write: published layout, tokenizer, training_metrics.json."""
    head: Literal["gpm", "bt"] = "gpm"
    """gpm: embedding and skew product, any preference; bt: one reward."""
    value_head_dim: int | None = None
    """Embedding width, even; None: 8. Bradley-Terry has 1."""
    gated: bool = False
    """Weigh the blocks of the embedding by a gate that reads the prompt."""
    tau: Positive | None = None
    """Temperature of the preference; None: 0.1 for gpm, 1 for bt."""
    learning_rate: Positive = 3e-3
    """At the first step; it falls linearly to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's."""
    epochs: Count = 60
    """Passes over the pairs; the backbone is read once."""
    batch_pairs: Count = 256
    """Pairs a step."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Start of the heads and order of the pairs."""
    max_length: Count = 2048
    """Longest conversation in tokens."""
    gate_prompt: Literal["first_message", "all_but_last"] = "first_message"
    """What the gate reads. first_message is the published convention; all_but_last suits system prompts."""
    cache: str = "models/hidden-states"
    """Folder for the backbone's states, which a twin on the same pairs uses again."""


def train_reward_model(config: RewardTrainConfig) -> int:
    """Train, save, say what came out; returns the exit status. Raises UserError for the caller's mistakes."""
    from reward.errors import RewardInputError

    backbone = Path(config.backbone)
    read_model_config(backbone)
    parameter_count(backbone)
    if not has_chat_template(backbone):
        raise UserError(f"backbone = {backbone}: its tokenizer has no chat template")
    try:
        return _train(config)
    except RewardInputError as error:
        raise UserError(str(error)) from None


def _train(config: RewardTrainConfig) -> int:
    from gpo.cpu import use_threads
    from reward.pairs import read_pairs

    train, heldout = read_pairs(config.train), read_pairs(config.heldout)
    from gpo.cards import CARD, reward_card
    from reward.head_training import HeadTrainingSettings, train_heads

    use_threads(len(os.sched_getaffinity(0)))
    settings = HeadTrainingSettings(
        **config.model_dump(exclude={"backbone", "train", "heldout", "output", "cache"}),
    )
    bars: dict[int, Progress] = {}

    def progress(done: int, total: int) -> None:
        bars.setdefault(total, Progress("reading the backbone's states", total, "tokens")).update(done)

    report = train_heads(config.backbone, train, heldout, config.output, settings, config.cache, progress)
    measured = {name: asdict(getattr(report, name)) for name in ("train", "heldout")}
    write_text(Path(config.output) / CARD, reward_card(config.model_dump(), measured))
    logger.info(
        "%s: accuracy %.3f on %d training pairs, %.3f on %d held-out pairs; heads took %.1f s",
        relative(Path(config.output)),
        report.train.accuracy,
        report.train.pairs,
        report.heldout.accuracy,
        report.heldout.pairs,
        report.head_seconds,
    )
    return 0
