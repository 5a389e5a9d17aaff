"""Conversations that begin alike are laid out so that each beginning is computed once.
What it is: lists and numbers only. Sorted token rows are cut into batches under a budget of tokens to compute;
each batch becomes one packed row of segments, a tree in which the K answers to a prompt branch off the
prompt. Nothing is padded. What it is not: it runs no model and knows no tensors.

A segment's tokens follow each other in every conversation that it belongs to, and see what lies before them
in that conversation and nothing else; `reward.packed_attention` does the seeing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

MIN_SHARED = 16
"""Tokens a common beginning must save to become a segment: for fewer the extra attention call costs more."""

Row = tuple[int, ...]
"""The token ids of one conversation."""
Span = tuple[int, int]
"""Start and stop in the packed row."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens of the packed row."""

    start: int
    stop: int
    position: int
    """Tokens before it in its conversations."""
    seen: tuple[Span, ...]
    """Where its conversation up to its own end lies, in order; neighbouring spans are one."""


@dataclass(slots=True)
class PackedRows:
    """Several conversations as one row of tokens."""

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    seen: list[tuple[Span, ...]] = field(default_factory=list)
    """For each conversation, in the order given, where its tokens lie."""

    def index(self, row: int, position: int) -> int:
        """Where token `position` of conversation `row` lies."""
        for start, stop in self.seen[row]:
            if position < stop - start:
                return start + position
            position -= stop - start
        raise IndexError(f"conversation {row} has {position} tokens fewer than asked for")

    def _add(self, tokens: Row, position: int, before: tuple[Span, ...]) -> tuple[Span, ...]:
        """Append a segment behind what lies at `before`; returns where the conversation up to its end lies."""
        if not tokens:
            return before
        start, stop = len(self.input_ids), len(self.input_ids) + len(tokens)
        seen = (*before, (start, stop))
        if before and before[-1][1] == start:
            seen = (*before[:-1], (before[-1][0], stop))
        self.input_ids.extend(tokens)
        self.position_ids.extend(range(position, position + len(tokens)))
        self.segments.append(Segment(start, stop, position, seen))
        return seen


def pack_rows(rows: Sequence[Row]) -> PackedRows:
    """Lay out different rows that are sorted, so that those that begin alike are neighbours."""
    packed = PackedRows(seen=[()] * len(rows))
    # Rows first to last - 1 agree in `depth` tokens, which lie at `before` already.
    todo: list[tuple[int, int, int, tuple[Span, ...]]] = [(0, len(rows), 0, ())] if rows else []
    while todo:
        first, last, depth, before = todo.pop()
        alone = last - first == 1
        # All sorted rows between two lie between them in every token: these two agree the least.
        common = len(rows[first]) if alone else common_length(rows[first], rows[last - 1])
        if alone or common - depth >= MIN_SHARED:
            before = packed._add(rows[first][depth:common], depth, before)
            depth = common
        if alone:
            packed.seen[first] = before
        else:
            todo.extend((*bounds, depth, before) for bounds in reversed(_branches(rows, first, last, common)))
    return packed


def _branches(rows: Sequence[Row], first: int, last: int, place: int) -> list[tuple[int, int]]:
    """Runs of rows with the same token at `place`; a row that ends there is a run of its own."""
    runs, start = [], first
    for _, run in groupby(range(first, last), key=lambda row: rows[row][place : place + 1]):
        stop = start + sum(1 for _ in run)
        runs.append((start, stop))
        start = stop
    return runs


def packed_batches(rows: Sequence[Row], tokens_per_batch: int) -> Iterator[range]:
    """Runs of sorted rows that pack into at most so many tokens, or one longer row.

    A run that is cut in the middle of a prompt's answers computes the prompt again, so the cut is made where
    neighbours have least in common, as long as the batch stays half full.
    """
    shared = [0, *(common_length(*pair) for pair in pairwise(rows))]
    start = 0
    while start < len(rows):
        used = [len(rows[start])]
        for row in range(start + 1, len(rows)):
            # Never less than what packing adds: it may compute up to MIN_SHARED - 1 common tokens again.
            needed = used[-1] + len(rows[row]) - max(shared[row] - MIN_SHARED + 1, 0)
            if needed > tokens_per_batch:
                break
            used.append(needed)
        stop = start + len(used)
        if stop < len(rows):
            cuts = [start + place for place, tokens in enumerate(used, 1) if 2 * tokens >= tokens_per_batch]
            stop = min(cuts or [stop], key=lambda cut: (shared[cut], -cut))
        yield range(start, stop)
        start = stop


def common_length(one: Row, other: Row) -> int:
    """How many first tokens two rows have in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
