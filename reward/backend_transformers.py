"""The transformers back end: token rows in, final hidden states of two positions out.
What it is: batches of similar length under a budget of padded tokens, identical rows computed once, order
restored. What it is not: it applies no heads and knows no text; sharing a prompt's computation between its
answers is left to later work.

Shape suffixes: N rows, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel, pad_rows

Progress = Callable[[int, int], None]
"""Called after every batch with (tokens done, all tokens)."""


class HiddenStates(NamedTuple):
    """What every back end returns: the states at the last token and at the prompt's end."""

    answer_NH: Tensor
    prompt_NH: Tensor


class TransformersBackend:
    """Runs the backbone of one model on the device where it is."""

    def __init__(self, model: GeneralPreferenceModel, tokens_per_batch: int = 8192) -> None:
        if tokens_per_batch < 1:
            raise RewardInputError(f"tokens_per_batch is {tokens_per_batch}, expected at least 1 padded token")
        self.model = model.eval()
        self.tokens_per_batch = tokens_per_batch

    @torch.no_grad()
    def hidden_states(self, rows: Sequence[EncodedConversation], progress: Progress | None = None) -> HiddenStates:
        """States of each row, in order, in the backbone's type."""
        place_of = _places(rows)
        unique = list({place: row for row, place in zip(rows, place_of, strict=True)}.values())
        hidden_size = self.model.heads.value_head.in_features
        shape = (2, len(unique), hidden_size)
        states_2UH = torch.empty(shape, dtype=self.model.backbone.dtype, device=self.model.backbone.device)
        lengths, done = [len(row.input_ids) for row in unique], 0
        for places in length_batches(lengths, self.tokens_per_batch):
            batch = pad_rows([unique[place] for place in places], self.model.backbone.device)
            states_2UH[:, places] = torch.stack(self.model.hidden_states(*batch))
            done += sum(lengths[place] for place in places)
            if progress is not None:
                progress(done, sum(lengths))
        return HiddenStates(states_2UH[0, place_of], states_2UH[1, place_of])


def _places(rows: Sequence[EncodedConversation]) -> list[int]:
    """For each row its place among the different rows."""
    places: dict[tuple[int, ...], int] = {}
    return [places.setdefault((row.prompt_end, *row.input_ids), len(places)) for row in rows]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices in batches, longest first (so memory peaks at once), each within the budget or a single row."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
