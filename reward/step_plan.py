"""Which pairs are computed in which step, by which worker, in which forward pass.
What it is: a plan that depends on data, seed and step only, so that any number of workers compute the same steps and a
training that was stopped goes on with the very next pairs. The pairs of a group (a cycle, the answers to a prompt) stay
together on one worker. What it is not: it computes nothing.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch.utils.data import Dataset, IterableDataset

from reward.encoded_pairs import EncodedPair, PairEncoder, keep_pair
from reward.pair_batches import PairBatch, lay_out
from reward.pair_sources import epoch_order
from reward.pairs import PreferencePair

Group = list[EncodedPair]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Share:
    """A worker's part of every step."""

    rank: int = 0
    world: int = 1
    accumulation: int = 1
    """Forward passes a step."""
    share_beginnings: bool = True
    with_answers: bool = False

    def batches(self, step: Sequence[Group]) -> Iterator[PairBatch]:
        """This worker's forward passes of one step."""
        return (self.batch(step, part) for part in range(self.accumulation))

    def batch(self, step: Sequence[Group], part: int) -> PairBatch:
        """One of them; a pass without pairs repeats one with weight 0."""
        groups = balanced_parts(step, self.world * self.accumulation)[self.rank * self.accumulation + part]
        listed = [pair for group in groups for pair in group]
        weight = self.world / sum(map(len, step)) if listed else 0.0
        return lay_out(listed or step[0][:1], weight, share=self.share_beginnings, with_answers=self.with_answers)


def balanced_parts(groups: Sequence[Group], count: int) -> list[list[Group]]:
    """Groups shared out so that the parts have about as many tokens; longest first, each to the lightest part."""
    parts: list[list[Group]] = [[] for _ in range(count)]
    loads = [0] * count
    for group in sorted(groups, key=_tokens, reverse=True):
        lightest = loads.index(min(loads))
        parts[lightest].append(group)
        loads[lightest] += _tokens(group)
    return parts


def _tokens(group: Group) -> int:
    return sum(len(row) for pair in group for row in pair.rows)


def cut_steps(groups: Iterable[list[Item]], batch_pairs: int) -> Iterator[list[list[Item]]]:
    """Whole groups up to `batch_pairs` pairs; a larger group is a step of its own."""
    step: list[list[Item]] = []
    pairs = 0
    for group in groups:
        if step and pairs + len(group) > batch_pairs:
            yield step
            step, pairs = [], 0
        step.append(group)
        pairs += len(group)
    if step:
        yield step


def grouped(pairs: Iterable[EncodedPair]) -> list[Group]:
    """Pairs by group, in the order in which the groups first come."""
    groups: dict[str, Group] = {}
    for pair in pairs:
        groups.setdefault(pair.pair.group, []).append(pair)
    return list(groups.values())


def plan_steps(
    sources: Sequence[Sequence[Group]],
    weights: Sequence[float | None],
    *,
    seed: int,
    epochs: float,
    batch_pairs: int,
    max_steps: int | None = None,
) -> list[list[tuple[int, int]]]:
    """Each step as (source, group) places; a fraction of an epoch takes its first steps."""
    steps: list[list[tuple[int, int]]] = []
    for epoch in range(math.ceil(epochs)):
        order = epoch_order([len(groups) for groups in sources], weights, seed, epoch)
        sized = [[place] * len(sources[place[0]][place[1]]) for place in order]
        found = [[group[0] for group in step] for step in cut_steps(sized, batch_pairs)]
        steps += found[: math.ceil(min(1.0, epochs - epoch) * len(found))]
        if max_steps is not None and len(steps) >= max_steps:
            break
    return steps[:max_steps]


class PlannedPasses(Dataset[PairBatch]):
    """The forward passes of a worker over a whole training, laid out when asked for."""

    def __init__(self, sources: Sequence[Sequence[Group]], steps: Sequence[list[tuple[int, int]]], share: Share):
        self.sources, self.steps, self.share = sources, steps, share

    def __len__(self) -> int:
        return len(self.steps) * self.share.accumulation

    def __getitem__(self, place: int) -> PairBatch:
        number, part = divmod(place, self.share.accumulation)
        step = [self.sources[source][group] for source, group in self.steps[number]]
        return self.share.batch(step, part)


class StreamedPasses(IterableDataset[PairBatch]):
    """The same from an endless stream of groups; every worker reads all of it and lays out its share."""

    def __init__(self, stream: "StreamOfGroups", batch_pairs: int, share: Share):
        self.stream, self.batch_pairs, self.share = stream, batch_pairs, share

    def __iter__(self) -> Iterator[PairBatch]:
        for step in cut_steps(self.stream, self.batch_pairs):
            yield from self.share.batches(step)


class StreamOfGroups:
    """Encoded groups of a stream of pairs that begins anew with each iteration."""

    def __init__(self, make: "Iterable[list[PreferencePair]]", encoder: PairEncoder, cut_pairs: str):
        self._make, self._encoder, self._cut_pairs = make, encoder, cut_pairs
        self.counts: Counter[str] = Counter()
        """Of what was read since it last began, the shuffle buffer included."""

    def __iter__(self) -> Iterator[Group]:
        self.counts = Counter(dict.fromkeys(("read", "ties", "truncated_rows", "alike_when_cut", "answer_cut_away"), 0))
        for pairs in self._make:
            group = list(self._group(pairs))
            if group:
                yield group

    def _group(self, pairs: "list[PreferencePair]") -> Iterator[EncodedPair]:
        for pair in self._encoder.encode(pairs, self.counts["read"] + 1):
            self.counts["read"] += 1
            if pair.pair.is_tie:
                self.counts["ties"] += 1
                continue
            self.counts["truncated_rows"] += pair.truncated
            self.counts["alike_when_cut"] += pair.spoiled == "alike"
            self.counts["answer_cut_away"] += pair.spoiled == "no answer"
            if keep_pair(pair, self.counts["read"], self._cut_pairs):
                yield pair
