"""A batch of preference pairs laid out for one forward pass.
What it is: the different token rows of some pairs, each once, packed so that common beginnings are computed once (or
padded, for models that cannot share them), and where in the result each pair's states lie. What it is not: it runs no
model.

Shape suffixes: N pairs, A tokens of chosen answers; 2 stands for (chosen, rejected).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.encoded_pairs import EncodedPair
from reward.encoding import EncodedConversation
from reward.model import pad_rows
from reward.packing import PackedRows, Row, pack_rows


@dataclass(frozen=True)
class AnswerTokens:
    """Tokens of the chosen answers, for the SFT regulariser."""

    place_A: Tensor
    """Where the state lies that predicts it."""
    label_A: Tensor
    weight_A: Tensor
    """The pair's weight over its number of answer tokens."""


@dataclass(frozen=True)
class PairBatch:
    """What a model in training takes."""

    packed: PackedRows | None
    """None: the padded rows count."""
    padded: tuple[Tensor, Tensor] | None
    """input_ids and attention mask."""
    answer_N2: Tensor
    """Places of the last tokens in the flat states."""
    prompt_N2: Tensor
    target_N: Tensor
    margin_N: Tensor
    weight_N: Tensor
    """Factor of each pair's loss; their sum over all workers and forward passes of a step is the number of workers."""
    answers: AnswerTokens | None
    pairs: tuple[EncodedPair, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return len(self.packed.input_ids) if self.packed else int(self.padded[0].numel()) if self.padded else 0

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch with its tensors on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        padded = None if self.padded is None else (self.padded[0].to(device), self.padded[1].to(device))
        answers = None
        if self.answers is not None:
            answers = AnswerTokens(**{name: value.to(device) for name, value in vars(self.answers).items()})
        return PairBatch(packed=self.packed, padded=padded, answers=answers, pairs=self.pairs, **moved)


def lay_out(pairs: Sequence[EncodedPair], weight: float, *, share: bool, with_answers: bool = False) -> PairBatch:
    """One batch of pairs; `share`: compute common beginnings once."""
    rows_N2 = [(pair.row(0), pair.row(1)) for pair in pairs]
    rows = sorted({row for both in rows_N2 for row in both})
    number = {row: place for place, row in enumerate(rows)}
    packed = pack_rows(rows) if share else None
    padded = None if share else pad_rows([EncodedConversation(list(row), 0, 0, False, True) for row in rows])[:2]
    width = 0 if padded is None else padded[0].shape[1]

    def place(row: Row, position: int) -> int:
        return packed.index(number[row], position) if packed else number[row] * width + position

    ends = [[place(row, len(row) - 1) for row in both] for both in rows_N2]
    prompts = [
        [place(row, end) for row, end in zip(both, pair.prompt_ends, strict=True)]
        for both, pair in zip(rows_N2, pairs, strict=True)
    ]
    answers = None
    if with_answers:
        answers = _answer_tokens(
            [
                [(place(row, at - 1), row[at]) for at in range(max(pair.answer_start, 1), len(row))]
                for (row, _), pair in zip(rows_N2, pairs, strict=True)
            ],
            weight,
        )
    return PairBatch(
        packed=packed,
        padded=padded,
        answer_N2=torch.tensor(ends),
        prompt_N2=torch.tensor(prompts),
        target_N=torch.tensor([pair.pair.target_prob for pair in pairs]),
        margin_N=torch.tensor([pair.pair.margin or 0.0 for pair in pairs]),
        weight_N=torch.full((len(pairs),), weight),
        answers=answers,
        pairs=tuple(pairs),
    )


def _answer_tokens(tokens_of_pairs: list[list[tuple[int, int]]], weight: float) -> AnswerTokens:
    flat = [(*token, weight / len(tokens)) for tokens in tokens_of_pairs for token in tokens]
    places, labels, weights = zip(*flat, strict=True) if flat else ((), (), ())
    kind = torch.long
    return AnswerTokens(torch.tensor(places, dtype=kind), torch.tensor(labels, dtype=kind), torch.tensor(weights))
