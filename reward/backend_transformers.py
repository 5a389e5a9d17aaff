"""The transformers back end: token rows in, final hidden states of two positions out.
What it is: equal rows are computed once, and so is a beginning that rows share, above all the prompt of K
answers; batches stay under a budget of real tokens; the order is restored. Models whose beginnings cannot be
shared exactly, and those for which an attention other than sdpa was asked for, run as plain padded rows, batched
by length so that little is padding. What it is not: it applies no heads and knows no text.

Shape suffixes: N rows, F computed positions, T padded length, H hidden size.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel, pad_rows
from reward.packed_attention import packed_states, packing_obstacle
from reward.packing import Row, pack_rows, packed_batches

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

MAX_PADDING = 0.15
"""Largest share of a batch of plain rows that may be padding."""

Progress = Callable[[int, int], None]
"""Called after every batch with (tokens done, all tokens)."""


class HiddenStates(NamedTuple):
    """What every back end returns: the states at the last token and at the prompt's end."""

    answer_NH: Tensor
    prompt_NH: Tensor | None
    """None from a back end that was told there is no gate."""


class _Computed(NamedTuple):
    """States of one batch and where to find those of its rows."""

    states_FH: Tensor
    place: Callable[[int, int], int]
    """(row of the batch, position in it) -> F."""


class TransformersBackend:
    """Runs the backbone of one model on the device where it is."""

    def __init__(
        self, model: GeneralPreferenceModel, tokens_per_batch: int = 8192, attention: str | None = None
    ) -> None:
        """`attention` is what the caller asked the model to be opened with, None if nothing.

        Raises RewardInputError for a budget below one token.
        """
        if tokens_per_batch < 1:
            raise RewardInputError(f"tokens_per_batch is {tokens_per_batch}, expected at least 1 token")
        self.model = model.eval()
        self.tokens_per_batch = tokens_per_batch
        self.shares_beginnings = _shares_beginnings(model.backbone.config, attention)

    @torch.no_grad()
    def hidden_states(self, rows: Sequence[EncodedConversation], progress: Progress | None = None) -> HiddenStates:
        """States of each row, in order, in the backbone's type."""
        numbers_of: dict[Row, list[int]] = {}
        for number, row in enumerate(rows):
            numbers_of.setdefault(tuple(row.input_ids), []).append(number)
        unique = sorted(numbers_of)
        backbone = self.model.backbone
        shape = (2, len(rows), self.model.heads.value_head.in_features)
        states_2NH = torch.empty(shape, dtype=backbone.dtype, device=backbone.device)
        done, total = 0, sum(map(len, unique))
        for batch in self._batches(unique):
            computed = self._compute([unique[place] for place in batch])
            wanted = [(row, number) for row, place in enumerate(batch) for number in numbers_of[unique[place]]]
            numbers = [number for _, number in wanted]
            ends = [computed.place(row, len(rows[number].input_ids) - 1) for row, number in wanted]
            prompt_ends = [computed.place(row, rows[number].prompt_end) for row, number in wanted]
            states_2NH[:, numbers] = computed.states_FH[torch.tensor([ends, prompt_ends])]
            done += sum(len(unique[place]) for place in batch)
            if progress is not None:
                progress(done, total)
        return HiddenStates(states_2NH[0], states_2NH[1])

    def _batches(self, unique: Sequence[Row]) -> Iterator[Sequence[int]]:
        if self.shares_beginnings:
            return packed_batches(unique, self.tokens_per_batch)
        return length_batches([len(row) for row in unique], self.tokens_per_batch)

    def _compute(self, rows: list[Row]) -> _Computed:
        if self.shares_beginnings:
            packed = pack_rows(rows)
            return _Computed(packed_states(self.model.backbone, packed), packed.index)
        batch = pad_rows(
            [EncodedConversation(list(row), 0, 0, False, True) for row in rows], self.model.backbone.device
        )
        output = self.model.backbone(
            input_ids=batch.input_ids_NT, attention_mask=batch.attention_mask_NT, use_cache=False
        )
        padded_length = batch.input_ids_NT.shape[1]
        return _Computed(output.last_hidden_state.flatten(0, 1), lambda row, place: row * padded_length + place)


def _shares_beginnings(config: "PretrainedConfig", asked: str | None) -> bool:
    """Whether rows are packed, which is said with its reason; packed rows attend by sdpa, so others are not.

    An attention that the model was given without being asked for may be replaced: packing follows what it is there
    for, as the capped logits for which Gemma-2 runs in eager.
    """
    if asked not in (None, "sdpa"):
        # Capped logits let the model take another one than was asked for.
        found = config._attn_implementation
        reason = "it" if found == asked else asked
        logger.info("attention: %s over plain rows, because %s was asked for; prompts are not shared", found, reason)
        return False
    obstacle = packing_obstacle(config)
    if obstacle is not None:
        logger.warning("a prompt is computed once for each of its answers, not once: %s", obstacle)
        return False
    kind = "sdpa" if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None else "capped softmax"
    reason = "sdpa was asked for" if asked else "nothing else was asked for"
    logger.info("attention: %s over packed rows, because %s; each prompt is computed once", kind, reason)
    return True


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices in batches, longest first (so memory peaks at once).

    A batch holds at most so many real tokens, and little padding on top, or it is a single row.
    """
    batch: list[int] = []
    used = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch:
            padded = (len(batch) + 1) * lengths[batch[0]]
            used_with = used + lengths[place]
            if used_with > tokens_per_batch or padded - used_with > MAX_PADDING * padded:
                yield batch
                batch, used = [], 0
        batch.append(place)
        used += lengths[place]
    if batch:
        yield batch
