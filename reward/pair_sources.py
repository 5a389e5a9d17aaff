"""Data sets of preference pairs and their mixture: where pairs come from and how often each is used.
What it is: files and hub data sets under names, read at once or streamed, drawn by weight. What it is not: it tokenises
nothing.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from reward.errors import RewardInputError
from reward.pairs import LoadedPairs, PreferencePair, different_pairs, pair_of_row, rows_of_file

logger = logging.getLogger(__name__)

HUB = "hub:"


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """One data set."""

    path: str
    """.json, .jsonl, .parquet, a folder of them, or hub:NAME[:SPLIT]."""
    name: str = ""
    """In metrics; empty: the file's name."""
    weight: float | None = None
    """Share of an epoch relative to the other weights; None for all: each pair once an epoch."""
    template: bool = True
    """False: the published custom form, without chat template."""
    keep_repeats: bool = False
    """Repeated rows are used as often as they come."""

    @property
    def label(self) -> str:
        """Name in metrics."""
        return self.name or (self.path.split(":")[1] if self.path.startswith(HUB) else Path(self.path).stem)


def check_labels(sources: Sequence[PairSource]) -> None:
    """Raises RewardInputError for two sources of one label, whose counts and metrics would be one."""
    paths: dict[str, str] = {}
    for source in sources:
        if source.label in paths:
            raise RewardInputError(
                f"{paths[source.label]} and {source.path} are both called {source.label!r} in metrics, expected a name "
                "of its own for each data set; set name"
            )
        paths[source.label] = source.path


def stream_pairs(source: PairSource, hard_labels: bool = False) -> Iterator[PreferencePair]:
    """Every pair of a source in order, ties too; memory does not grow with it.

    Raises RewardInputError that names the row; `hard_labels`: also for a target_prob other than 1.
    """
    for where, row in file_rows(source.path):
        pair = replace(pair_of_row(row, where), template=source.template, source=source.label)
        if not source.template and len(pair.chosen) != 2:
            raise RewardInputError(f"{where}: {len(pair.chosen)} messages, expected an instruction and an answer")
        if hard_labels and pair.target_prob != 1:
            raise RewardInputError(
                f"{where}: target_prob is {pair.target_prob}, and a margin loss knows no soft labels; choose another "
                "loss, or leave target_prob out"
            )
        yield pair


def load_pairs(source: PairSource, hard_labels: bool = False) -> LoadedPairs:
    """All pairs of a source without ties, and what was left out; raises as `stream_pairs` does."""
    pairs = stream_pairs(source, hard_labels)
    if not source.keep_repeats:
        return different_pairs(pairs, source.path)
    listed = list(pairs)
    kept = tuple(pair for pair in listed if not pair.is_tie)
    if not kept:
        raise RewardInputError(f"{source.path}: {len(listed)} rows leave no pair that is not a tie")
    return LoadedPairs(kept, duplicates=0, ties=len(listed) - len(kept))


def file_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a file, of a folder's files, or of hub:NAME[:SPLIT]."""
    if path.startswith(HUB):
        return _hub_rows(path)
    folder = Path(path)
    if folder.is_dir():
        files = sorted(one for one in folder.iterdir() if one.suffix in (".json", ".jsonl", ".parquet"))
        if not files:
            raise RewardInputError(f"{path}: a folder without .json, .jsonl or .parquet files; expected pairs in it")
        return chain.from_iterable(map(rows_of_file, files))
    return rows_of_file(folder)


def _hub_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of hub:NAME[:SPLIT], streamed."""
    import datasets

    name, _, split = path.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
    except (OSError, ValueError) as error:
        raise RewardInputError(
            f"{path}: cannot be read from the hub ({str(error):.200}); expected hub:NAME[:SPLIT] that exists and a "
            "network, or a file"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def epoch_order(sizes: Sequence[int], weights: Sequence[float | None], seed: int, epoch: int) -> list[tuple[int, int]]:
    """(source, group) in the order of one epoch, shuffled; `sizes` counts the groups of each source.

    Without weights every group comes once. With them the epoch stays as long, the sources share it by weight, and a
    source that must give more than it has is gone through again in another order.
    """
    draw = random.Random(f"{seed} {epoch}")
    order: list[tuple[int, int]] = []
    for source, count in enumerate(_shares(sizes, weights)):
        places: list[int] = []
        while len(places) < count:
            places += draw.sample(range(sizes[source]), sizes[source])
        order += [(source, place) for place in places[:count]]
    draw.shuffle(order)
    return order


def _shares(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    given = _given(weights)
    return [max(1, round(sum(sizes) * weight / sum(given))) for weight in given] if given else list(sizes)


def _given(weights: Sequence[float | None]) -> list[float]:
    """The weights, or none of them; raises RewardInputError for some and for one that is not above 0."""
    given = [weight for weight in weights if weight is not None]
    if given and (len(given) != len(weights) or min(given) <= 0):
        raise RewardInputError(f"weights of the sources are {list(weights)}, expected a number above 0 for all or none")
    return given


def mixed_stream(
    sources: Sequence[PairSource], seed: int, buffer: int, hard_labels: bool = False
) -> Iterator[list[PreferencePair]]:
    """Endless groups: sources drawn by weight (equal without), each begun again at its end, shuffled in a buffer.

    In a stream a group is a run of neighbouring rows of one group, ties among them; repeats are not looked for.
    """
    draw = random.Random(f"{seed} stream")
    weights = _given([source.weight for source in sources]) or [1.0] * len(sources)
    streams = [_again(source, hard_labels) for source in sources]
    held: list[list[PreferencePair]] = []
    while True:
        held.append(next(draw.choices(streams, weights)[0]))
        if len(held) >= buffer:
            place = draw.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()


def _again(source: PairSource, hard_labels: bool) -> Iterator[list[PreferencePair]]:
    while True:
        found = False
        for _, run in groupby(stream_pairs(source, hard_labels), key=lambda pair: pair.group):
            group = list(run)
            found = found or not all(pair.is_tie for pair in group)
            yield group
        if not found:
            raise RewardInputError(f"{source.path}: no pair that is not a tie; expected at least one")
