"""How answers lie in memory for one forward pass, and how many fit into one.

What it is: lists and index tensors. Three layouts give the same log-probabilities:

    padded   a row an answer, filled up on the right; any model
    packed   all answers behind each other in one row, no padding; `gpo.training.segment_attention` keeps them apart
    shared   as packed, and a prompt is there once for all its answers

What it is not: it runs no model. Shapes: N answers, T tokens of a laid-out row, R answer tokens of all N together.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch

from reward.packing import Segment, Span

Layout = Literal["padded", "packed", "shared"]
IdRow = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and answer ids; neither is empty."""


def lay_out(rows: Sequence[IdRow], layout: Layout, pad_id: int = 0) -> dict[str, Any]:
    """What a model with the head of `gpo.training.log_probs` takes for these rows.

    `answer_at` [R] are the flat positions that predict an answer token, `answer_ids` [R] the tokens, row by row, and
    `lengths` the number of them in each row. Rows that share a prompt must be neighbours to be laid out once.
    Raises ValueError for a row without prompt or answer tokens: nothing would predict its first token.
    """
    for number, (prompt, answer) in enumerate(rows):
        if not prompt or not answer:
            found = f"{len(prompt)} prompt and {len(answer)} answer tokens"
            raise ValueError(f"row {number} has {found}; expected at least one of each")
    parts = _padded(rows, pad_id) if layout == "padded" else _packed(rows, layout == "shared")
    answers = [token for _, answer in rows for token in answer]
    return {**parts, "answer_ids": torch.tensor(answers), "lengths": [len(answer) for _, answer in rows]}


def _padded(rows: Sequence[IdRow], pad_id: int) -> dict[str, Any]:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    places: list[int] = []
    for number, (prompt, answer) in enumerate(rows):
        total = len(prompt) + len(answer)
        input_ids[number, :total] = torch.tensor([*prompt, *answer])
        attention_mask[number, :total] = 1
        places.extend(range(number * width + len(prompt) - 1, number * width + total - 1))
    return {"input_ids": input_ids, "attention_mask": attention_mask, "answer_at": torch.tensor(places)}


def _packed(rows: Sequence[IdRow], share: bool) -> dict[str, Any]:
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    places: list[int] = []

    def add(tokens: Sequence[int], position: int, before: tuple[Span, ...]) -> Span:
        own = (len(ids), len(ids) + len(tokens))
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        segments.append(Segment(*own, position, (*before, own)))
        return own

    for prompt, answers in groupby(rows, key=lambda row: tuple(row[0])):
        together = [answer for _, answer in answers]
        if not share or len(together) == 1:
            for answer in together:
                start, stop = add([*prompt, *answer], 0, ())
                places.extend(range(start + len(prompt) - 1, stop - 1))
            continue
        shared = add(prompt, 0, ())
        for answer in together:
            start, stop = add(answer, len(prompt), (shared,))
            places.extend([shared[1] - 1, *range(start, stop - 1)])
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "answer_at": torch.tensor(places),
        "segments": segments,
    }


def computed_tokens(prompt: int, answers: Sequence[int], layout: Layout) -> int:
    """Tokens that one prompt with answers of these lengths costs."""
    if layout == "padded":
        return len(answers) * (prompt + max(answers))
    return sum(answers) + prompt * (1 if layout == "shared" else len(answers))


def micro_batches(
    groups: Sequence[Sequence[int]], sizes: Sequence[tuple[int, int]], layout: Layout, tokens: int, divide: bool
) -> list[list[int]]:
    """Row numbers in batches of at most so many computed tokens, whole prompts together.

    `groups` are the rows of each prompt, `sizes` prompt and answer tokens of every row. Prompts of similar length come
    together, so that little is padded. A prompt beyond the budget is cut between its answers if `divide`, else it is a
    batch of its own; so is a single answer beyond it.
    """

    def cost(rows: Sequence[int]) -> int:
        return computed_tokens(sizes[rows[0]][0], [sizes[row][1] for row in rows], layout)

    pieces: list[list[int]] = []
    for group in groups:
        pieces.extend(_cut(group, cost, tokens) if divide else [list(group)])
    pieces.sort(key=lambda rows: (max(sum(sizes[row]) for row in rows), rows[0]))
    batches: list[list[int]] = []
    used = longest = count = 0
    for piece in pieces:
        length = max(sum(sizes[row]) for row in piece)
        if layout == "padded":
            needed = max(longest, length) * (count + len(piece))
        else:
            needed = used + cost(piece)
        if batches and needed <= tokens:
            batches[-1].extend(piece)
            used, longest, count = needed, max(longest, length), count + len(piece)
        else:
            batches.append(list(piece))
            used, longest, count = cost(piece), length, len(piece)
    return batches


def _cut(group: Sequence[int], cost: Any, tokens: int) -> list[list[int]]:
    pieces: list[list[int]] = []
    for row in group:
        if pieces and cost([*pieces[-1], row]) <= tokens:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces
