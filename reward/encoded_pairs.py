"""Preference pairs as token rows: what training and evaluation batches are made of.
What it is: both conversations of each pair encoded under one set of policies, pairs that max_length spoils counted and
handled. Ids are kept as arrays of 4 bytes each, because lists of numbers would take the memory of a large data set
many times over. What it is not: it forms no batches.
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from reward.encoding import ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.packing import Row
from reward.pairs import PreferencePair

logger = logging.getLogger(__name__)

_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One pair, ready to be computed."""

    rows: tuple["array[int]", "array[int]"]
    """Token ids of chosen and rejected."""
    prompt_ends: tuple[int, int]
    """Where the gate is read in each."""
    answer_start: int
    """First token of the chosen answer; only the SFT regulariser reads it."""
    pair: PreferencePair
    spoiled: str = ""
    """What max_length did to it: "alike", "no answer" or nothing."""
    truncated: int = 0
    """How many of its two rows were cut."""

    def row(self, side: int) -> Row:
        """Ids of one conversation as packing takes them."""
        return tuple(self.rows[side])


class PairEncoder:
    """Encodes pairs; a second encoder finds where answers start, whatever the gate reads."""

    def __init__(self, encoder: ConversationEncoder, beat: Callable[[], None] = lambda: None) -> None:
        """`beat` is called again and again as long as pairs get encoded."""
        self._encoder, self._beat = encoder, beat
        settings = replace(encoder.settings, gate_prompt="all_but_last")
        self._answers = ConversationEncoder(encoder.tokenizer, settings, encoder.max_length)

    def encode(self, pairs: Iterable[PreferencePair], first: int = 1) -> Iterator[EncodedPair]:
        """Each pair, in order.

        Raises RewardInputError that names a pair by its data set and its number, of which the first pair has `first`.
        """
        numbered = enumerate(pairs, first)
        while part := list(islice(numbered, _AT_ONCE)):
            try:
                encoded = list(self._encode(part))
            except RewardInputError as error:
                source = part[0][1].source or "the data"
                raise RewardInputError(
                    f"{source}: {error} (row N is the Nth pair that is used: ties and repeats are left out)"
                ) from error
            self._beat()
            yield from encoded

    def _encode(self, part: Sequence[tuple[int, PreferencePair]]) -> Iterator[EncodedPair]:
        templated = [(number, talk) for number, pair in part if pair.template for talk in (pair.chosen, pair.rejected)]
        numbers, talks = [number for number, _ in templated], [talk for _, talk in templated]
        # Rows are equal under both gate policies but for where the prompt ends.
        rows, starts = iter(self._encoder.encode(talks, numbers)), iter(self._answers.encode(talks, numbers))
        for number, pair in part:
            if pair.template:
                yield _encoded(pair, [next(rows), next(rows)], [next(starts), next(starts)])
            else:
                plain = [self._custom(talk, number) for talk in (pair.chosen, pair.rejected)]
                yield _encoded(pair, plain, plain)

    def _custom(self, talk: Sequence[dict[str, str]], number: int) -> EncodedConversation:
        return self._encoder.encode_custom(talk[0]["content"], talk[-1]["content"], number)


def _encoded(
    pair: PreferencePair, rows: Sequence[EncodedConversation], starts: Sequence[EncodedConversation]
) -> EncodedPair:
    chosen, rejected = (array("i", row.input_ids) for row in rows)
    empty = any(row.prompt_len >= len(row.input_ids) for row in starts)
    return EncodedPair(
        (chosen, rejected),
        (rows[0].prompt_end, rows[1].prompt_end),
        starts[0].prompt_len,
        pair,
        "alike" if chosen == rejected else "no answer" if empty else "",
        sum(row.truncated for row in rows),
    )


@dataclass(frozen=True)
class EncodingCounts:
    """What max_length did to a data set."""

    pairs: int
    truncated_rows: int
    alike: int
    """Pairs whose rows are the same once they are cut."""
    no_answer: int
    """Pairs of which the prompt alone fills max_length."""


def encode_all(
    encoder: PairEncoder, pairs: Sequence[PreferencePair], cut_pairs: str
) -> tuple[list[EncodedPair], EncodingCounts]:
    """All pairs in order without those that `cut_pairs` leaves out; raises RewardInputError when it refuses one."""
    encoded = list(encoder.encode(pairs))
    counts = EncodingCounts(
        len(encoded),
        sum(pair.truncated for pair in encoded),
        sum(pair.spoiled == "alike" for pair in encoded),
        sum(pair.spoiled == "no answer" for pair in encoded),
    )
    kept = [pair for number, pair in enumerate(encoded, 1) if keep_pair(pair, number, cut_pairs)]
    if counts.alike or counts.no_answer:
        logger.warning(
            "max_length leaves %d pairs alike and %d without an answer; cut_pairs = %s leaves %d of %d",
            counts.alike,
            counts.no_answer,
            cut_pairs,
            len(kept),
            len(encoded),
        )
    if not kept:
        raise RewardInputError(f"max_length leaves none of {len(encoded)} pairs; expected a longer one")
    return kept, counts


def keep_pair(pair: EncodedPair, number: int, cut_pairs: str) -> bool:
    """Whether a pair is used; raises RewardInputError with its number when cut_pairs is "refuse"."""
    if not pair.spoiled or cut_pairs == "keep":
        return True
    if cut_pairs == "refuse":
        raise RewardInputError(
            f"pair {number}: max_length leaves it {pair.spoiled!r}, and cut_pairs is 'refuse'; "
            "expected a longer max_length, or cut_pairs drop or keep"
        )
    return False
