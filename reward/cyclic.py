"""The cyclic experiment: a GPM and a Bradley-Terry model on the same preferences, next to what any scalar can reach.
What it is: both models trained in this process, whole (`reward.training`) or by their heads alone
(`reward.head_training`), their accuracy on the very pairs (as in the paper, which asks what a model can represent), and
the GPM's embeddings as a picture. What it is not: it makes no data.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reward.cyclic_ceiling import scalar_ceiling
from reward.cyclic_data import CyclicData
from reward.cyclic_picture import embedding_picture
from reward.head_settings import HeadTrainingSettings
from reward.head_training import train_heads
from reward.pair_metrics import correct_pairs
from reward.pair_sources import PairSource
from reward.pairs import PreferencePair
from reward.preference import preference_score
from reward.scorer import PreferenceScorer
from reward.training import TrainingTask, train_pairs
from reward.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

Settings = TrainingSettings | HeadTrainingSettings
"""Of a training of the whole model, or of heads on a backbone that stays as it is."""
LARGEST_PICTURE = 24
"""Answers beyond which a picture shows nothing."""


@dataclass(frozen=True)
class CyclicRow:
    """A row of `cyclic.json`."""

    data: str
    model: str
    value_head_dim: int
    pairs: int
    accuracy: float
    scalar_ceiling: float | None
    """Best accuracy of any scalar reward; None: too large to compute."""
    steps: int
    seconds: float


def compare_on_cycles(
    data: Sequence[CyclicData],
    backbone: str,
    settings: Settings,
    folder: Path,
    on_row: Callable[[CyclicRow], None],
) -> list[CyclicRow]:
    """Train both models on each data set; `settings` are the GPM's, the other model has the same but for its head."""
    rows = []
    for one in data:
        ceiling = scalar_ceiling(one.pairs)
        for kind in ("gpm", "bt"):
            wanted = settings if kind == "gpm" else scalar_twin(settings)
            row = _train(one, backbone, wanted, folder / one.name / kind, ceiling)
            rows.append(row)
            on_row(row)
        draw(one, folder / one.name / "gpm", folder / f"{one.name}.svg")
    return rows


def scalar_twin(settings: Settings) -> Settings:
    """The same training of a Bradley-Terry reward."""
    fields: dict[str, Any] = {"head": "bt", "value_head_dim": None, "gated": False, "l2_normalize": None, "tau": None}
    if isinstance(settings, TrainingSettings):
        fields["gate_scaling"] = False
    return replace(settings, **fields)


def _train(data: CyclicData, backbone: str, settings: Settings, output: Path, ceiling: float | None) -> CyclicRow:
    file = output.parent / "pairs.jsonl"
    write_pairs(file, data.pairs)
    started = time.perf_counter()
    if isinstance(settings, HeadTrainingSettings):
        train_heads(backbone, data.pairs, (), output, settings, output.parent / "hidden-states")
        steps = settings.epochs * math.ceil(len(data.pairs) / settings.batch_pairs)
    else:
        source = (PairSource(path=str(file), name=data.name),)
        report = train_pairs(TrainingTask(backbone=backbone, train=source, output=str(output), settings=settings))
        assert report is not None  # There is one worker, this process.
        steps = report["steps"]
    seconds = time.perf_counter() - started
    scorer = PreferenceScorer.from_pretrained(output, dtype="float32")
    accuracy, width = pair_accuracy(scorer, data.pairs), scorer.settings.value_head_dim
    return CyclicRow(data.name, scorer.settings.head, width, len(data.pairs), accuracy, ceiling, steps, seconds)


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Pairs as a file that training reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("chosen", "rejected", "group", "target_prob")
    lines = [json.dumps({name: getattr(pair, name) for name in names}) + "\n" for pair in pairs]
    path.write_text("".join(lines), "utf-8")


def pair_accuracy(scorer: PreferenceScorer, pairs: Sequence[PreferencePair]) -> float:
    """Share of labelled pairs on which the saved model agrees; a tie is half right."""
    found = scorer.embed([talk for pair in pairs for talk in (pair.chosen, pair.rejected)])
    gate = None if found.gate_NL is None else found.gate_NL.unflatten(0, (-1, 2)).mean(1)
    score_N = preference_score(found.v_ND[::2], found.v_ND[1::2], gate)
    correct = [one for one, pair in zip(correct_pairs(pairs, score_N), pairs, strict=True) if pair.label]
    return sum(correct) / len(correct)


def draw(data: CyclicData, model: Path, picture: Path) -> None:
    """Embeddings of the answers of the first group."""
    group = [pair for pair in data.pairs if pair.group == data.pairs[0].group]
    talks = {talk[-1]["content"]: talk for pair in group for talk in (pair.chosen, pair.rejected)}
    if len(talks) > LARGEST_PICTURE:
        logger.info("%s: no picture of %d answers; up to %d are drawn", data.name, len(talks), LARGEST_PICTURE)
        return
    found = PreferenceScorer.from_pretrained(model, dtype="float32").embed(list(talks.values()))
    number = {name: place for place, name in enumerate(talks)}
    edges = [(pair.chosen, pair.rejected)[:: 1 if pair.label > 0 else -1] for pair in group if pair.label]
    wins = [(number[winner[-1]["content"]], number[loser[-1]["content"]]) for winner, loser in edges]
    gate = None if found.gate_NL is None else found.gate_NL.mean(0).tolist()
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in talks]
    picture.write_text(embedding_picture(data.name, names, found.v_ND.tolist(), wins, gate), "utf-8")


def as_json(rows: Sequence[CyclicRow]) -> list[dict[str, object]]:
    """What `cyclic.json` holds."""
    return [asdict(row) for row in rows]
