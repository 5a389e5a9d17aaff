"""Which answers a worker trains on in which step: a plan that seed and epoch alone decide.

A step is `step_prompts` prompts with all their answers, over all workers and accumulation passes together, so that
neither their number nor the memory of a machine changes what a step means. Inside, prompts are shared out so that every
worker computes about as many tokens, and cut into micro-batches under a budget of tokens (`gpo.training.layout`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset as Table
from torch.utils.data import DataLoader, Dataset, Sampler

from gpo.training.layout import Layout, computed_tokens, lay_out, micro_batches

FLOAT_COLUMNS = ("target", "score", "ref_logps", "anchor_logps", "best")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What decides the batches beside the rows themselves."""

    layout: Layout
    batch_tokens: int
    """Computed tokens a forward pass."""
    step_prompts: int
    passes: int = 1
    """Gradient accumulation: items a step, for a caller that wants to see each."""
    seed: int = 0
    rank: int = 0
    world: int = 1
    pad_id: int = 0
    divide: bool = True
    """Whether a prompt's answers may fall into several forward passes."""
    shuffle: bool = True


class Steps(Dataset[dict[str, Any]]):
    """Item (epoch, place) is one worker's share of one accumulation pass.

    `rows`: answers of the whole step, over all workers and passes; in order (no `shuffle`), those of a step on average,
    so that the mean that an evaluation takes over its steps is the mean over all rows. `parts`: micro-batches as
    `layout.lay_out` makes them, with `row` numbers and the float columns. Every worker gets equally many parts, filled
    up with one that is marked `idle`, because sharded models must run their forward passes in step.
    """

    def __init__(self, table: Table, plan: StepPlan) -> None:
        self._table = table
        self._plan = plan
        self.rows = len(table)
        prompts, answers = table["prompt_ids"], table["completion_ids"]
        self._sizes = [(len(prompt), len(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
        names = table["prompt_id"] if "prompt_id" in table.column_names else [tuple(ids) for ids in prompts]
        groups: dict[Any, list[int]] = {}
        for row, name in enumerate(names):
            groups.setdefault(name, []).append(row)
        self._groups = list(groups.values())
        self._columns = [name for name in FLOAT_COLUMNS if name in table.column_names]
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return -(-len(self._groups) // self._plan.step_prompts) * self._plan.passes

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        batches = self.batches(*key)
        own = batches[self._plan.rank]
        parts = [self._part(rows) for rows in own]
        idle = max(len(batch) for batch in batches) - len(own)
        parts += [idle_part(self._plan.layout, self._columns) for _ in range(idle or not parts)]
        everywhere = torch.tensor([row for batch in batches for rows in batch for row in rows])
        rows = self.rows / len(self)
        if self._plan.shuffle:
            rows = sum(len(group) for group in self._groups_of(key[0], key[1] // self._plan.passes))
        return {"row": everywhere, "rows": rows, "parts": parts}

    def batches(self, epoch: int, place: int) -> list[list[list[int]]]:
        """Row numbers of each micro-batch of each worker in one accumulation pass."""
        step, number = divmod(place, self._plan.passes)
        return [self._batches(share) for share in self._shares(self._groups_of(epoch, step), number)]

    def _groups_of(self, epoch: int, step: int) -> list[list[int]]:
        if epoch not in self._orders:
            order = list(range(len(self._groups)))
            if self._plan.shuffle:
                random.Random(f"{self._plan.seed}/{epoch}").shuffle(order)
            self._orders = {epoch: order}
        start = step * self._plan.step_prompts
        return [self._groups[index] for index in self._orders[epoch][start : start + self._plan.step_prompts]]

    def _shares(self, groups: Sequence[list[int]], number: int) -> list[list[list[int]]]:
        """The prompts of each worker in one pass: the costliest first, each to whoever has least."""
        world, passes = self._plan.world, self._plan.passes
        shares: list[list[list[int]]] = [[] for _ in range(world * passes)]
        loads = [0] * len(shares)
        for group in sorted(groups, key=self._cost, reverse=True):
            least = loads.index(min(loads))
            shares[least].append(group)
            loads[least] += self._cost(group)
        return shares[number * world : (number + 1) * world]

    def _cost(self, group: Sequence[int]) -> int:
        sizes = [self._sizes[row] for row in group]
        return computed_tokens(sizes[0][0], [answer for _, answer in sizes], self._plan.layout)

    def _batches(self, groups: list[list[int]]) -> list[list[int]]:
        plan = self._plan
        return micro_batches(groups, self._sizes, plan.layout, plan.batch_tokens, plan.divide)

    def _part(self, rows: list[int]) -> dict[str, Any]:
        columns = self._table[rows]
        ids = list(zip(columns["prompt_ids"], columns["completion_ids"], strict=True))
        part = lay_out(ids, self._plan.layout, self._plan.pad_id)
        part |= {name: torch.tensor(columns[name], dtype=torch.float32) for name in self._columns}
        return {**part, "row": torch.tensor(rows)}


def idle_part(layout: Layout, columns: Sequence[str] = ()) -> dict[str, Any]:
    """The smallest forward pass, for a worker that has nothing left in a step; its loss counts nothing."""
    return {**lay_out([([0], [0])], layout), **{name: torch.zeros(1) for name in columns}, "idle": True}


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The places of an epoch in order, each a batch of its own."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch, also behind skipped batches."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._places

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for place in range(self._places):
            yield [(self._epoch, place)]


class StepLoader(DataLoader[dict[str, Any]]):
    """A data loader over `Steps` that hands the epoch on; accelerate must not share its items out again."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, batch_sampler=StepSampler(len(steps)), collate_fn=_only_item)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.set_epoch(epoch)


def _only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return item
