"""What a worker trains on and measures on: sources read, checked and encoded, and laid out in steps.
What it is: the way from data sets to the passes of `reward.step_plan` and to held-out pairs, with counts of what was
left out. What it is not: it opens no model.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from reward.encoded_pairs import EncodedPair, EncodingCounts, PairEncoder, encode_all
from reward.errors import RewardInputError
from reward.head_settings import HeadTrainingSettings
from reward.pair_metrics import split_metrics
from reward.pair_sources import PairSource, check_labels, load_pairs, mixed_stream
from reward.pairs import PreferencePair
from reward.step_plan import PlannedPasses, Share, StreamedPasses, StreamOfGroups, grouped, plan_steps
from reward.training_settings import TrainingSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Encoded pairs, and how many were left out."""

    passes: PlannedPasses | StreamedPasses
    heldout: list[EncodedPair]
    counts: Callable[[], dict[str, Any]]
    """Of a stream they are known at its end."""
    epochs: float


def read_data(
    train: Sequence[PairSource],
    heldout: Sequence[PairSource],
    stream_buffer: int,
    settings: TrainingSettings,
    encoder: PairEncoder,
    share: Share,
) -> TrainingData:
    """Every source read and encoded, or, with a `stream_buffer` above 0, the training sources begun when asked for.

    Raises RewardInputError that names the row, or says what the data lack for these settings.
    """
    check_labels(train)
    check_labels(heldout)
    held, held_counts = _load(heldout, encoder, settings)
    flat_heldout = [pair for part in held for pair in part]
    check_metric(settings, [pair.pair for pair in flat_heldout])
    if stream_buffer:
        if settings.max_steps is None:
            raise RewardInputError("the data are streamed and max_steps is not given; a stream has no end: give it")
        make = _Again(partial(mixed_stream, train, settings.seed, stream_buffer, settings.loss == "margin"))
        stream = StreamOfGroups(make, encoder, settings.cut_pairs)
        return TrainingData(
            StreamedPasses(stream, settings.batch_pairs, share),
            flat_heldout,
            lambda: {"train": {"stream": dict(stream.counts)}, "heldout": held_counts},
            1.0,
        )
    read, counts = _load(train, encoder, settings)
    check_margins(settings, [pair.pair for part in read for pair in part])
    _warn_shared(read, flat_heldout)
    sources = [grouped(pairs) for pairs in read]
    steps = plan_steps(
        sources,
        [source.weight for source in train],
        seed=settings.seed,
        epochs=settings.epochs,
        batch_pairs=settings.batch_pairs,
        max_steps=settings.max_steps,
    )
    counted = {"train": counts, "heldout": held_counts}
    return TrainingData(PlannedPasses(sources, steps, share), flat_heldout, lambda: counted, settings.epochs)


def check_metric(settings: TrainingSettings, heldout: Sequence[PreferencePair]) -> None:
    """Raises RewardInputError when the held-out pairs do not tell the metric that chooses the best checkpoint."""
    if heldout and getattr(split_metrics(heldout, torch.zeros(len(heldout))), settings.best_metric, 0.0) is None:
        wanted = "labels that go in circles" if settings.best_metric == "cyclic_accuracy" else "a label"
        raise RewardInputError(
            f"best_metric is {settings.best_metric}, and no held-out pair has {wanted}; expected another best_metric, "
            "for example loss, or other held-out pairs"
        )


def check_margins(settings: TrainingSettings | HeadTrainingSettings, train: Sequence[PreferencePair]) -> None:
    """Raises RewardInputError for a margin loss without a single margin."""
    if settings.loss == "margin" and all(pair.margin is None for pair in train):
        raise RewardInputError("loss is margin, and no training pair has a margin; expected margins, or loss logistic")


class _Again:
    """An iterable that begins anew each time it is gone through."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __iter__(self) -> Any:
        return iter(self._make())


def _load(
    sources: Sequence[PairSource], encoder: PairEncoder, settings: TrainingSettings
) -> tuple[list[list[EncodedPair]], dict[str, Any]]:
    encoded, counts = [], {}
    for source in sources:
        loaded = load_pairs(source, settings.loss == "margin")
        pairs, cut = encode_all(encoder, loaded.pairs, settings.cut_pairs)
        encoded.append(pairs)
        counts[source.label] = _counts(len(pairs), loaded.duplicates, loaded.ties, cut)
    return encoded, counts


def _counts(used: int, duplicates: int, ties: int, cut: EncodingCounts) -> dict[str, int]:
    found = {"used": used, "duplicates": duplicates, "ties": ties, "truncated_rows": cut.truncated_rows}
    return found | {"alike_when_cut": cut.alike, "answer_cut_away": cut.no_answer}


def _warn_shared(train: Sequence[Sequence[EncodedPair]], heldout: Sequence[EncodedPair]) -> None:
    groups = {pair.pair.group for part in train for pair in part}
    shared = groups & {pair.pair.group for pair in heldout}
    if shared:
        logger.warning("%d held-out groups are also trained on: that accuracy is too good", len(shared))
