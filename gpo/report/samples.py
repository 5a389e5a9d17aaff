"""Prompts with their answers as a person wants to see them, read from the shards and held-out files of a run.

Only the columns that are shown are read: embeddings only where the table among the answers follows from nothing else,
and of token ids only how many there are. A prompt stands once, with an *appearance* for each iteration that asked it,
in training (`rollout`) or held out (`heldout`).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpo.errors import UserError
from gpo.journal import RunDirectory
from gpo.report.cycles import strongest_cycle
from gpo.report.forms import Heldout, read_form
from gpo.report.own_tables import OWN_FIRST, from_embeddings, own_columns

COLUMNS = (
    "prompt_id prompt weight_version completion completion_ids finish_reason score target left_out table baseline_kind"
).split()
EMBEDDING = ["embedding", "gate"]
"""Read where the answers' table among themselves is nowhere else."""
DIGITS = 5
"""Significant digits of scores and targets that are shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; a score only in training, a target only where it is not left out."""

    text: str
    finish: str
    tokens: int
    score: float | None = None
    target: float | None = None
    left_out: str = ""
    """Why it is not trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appearance:
    """A prompt's answers of one iteration."""

    kind: str
    """`rollout` or `heldout`."""
    iteration: int
    version: str
    answers: list[Answer]
    table: list[list[float]] | None = None
    """[K][M] raw scores."""
    baseline: str | None = None
    """What the M columns are; `self`: the answers themselves."""
    own_table: list[list[float]] | None = None
    """[K][K] raw scores of the answers among themselves, where the table has only others and embeddings tell them."""
    cycle: tuple[int, int, int] | None = None
    """The strongest cycle among the answers, by index."""

    def among_themselves(self) -> list[list[float]] | None:
        """[K][K] raw scores of the answers among themselves; None where nothing tells them."""
        return self.own_table or (own_columns(self.table, self.baseline) if self.table else None)


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt and all its appearances, training first, in the order of iterations."""

    prompt_id: str
    messages: list[dict[str, str]]
    appearances: list[Appearance] = field(default_factory=list)


def shard_files(directory: RunDirectory, iteration: int) -> list[Path]:
    """Finished shards of an iteration, in order."""
    return sorted((directory.iteration(iteration) / "rollouts").glob("shard-*.parquet"))


def iterations_on_disk(directory: RunDirectory) -> list[int]:
    """Numbers of the iteration folders, 0 (the start) among them."""
    folders = (directory.root / "iterations").glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a shard; raises UserError naming a file that is not whole or not ours."""
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable rollout shard ({error}); remove it and start the run again to have it made anew"
        ) from None


def token_counts(table: pa.Table) -> list[list[int]]:
    """[B][K] lengths of the answers in tokens."""
    ids = table["completion_ids"].combine_chunks()
    lengths = iter(pc.list_value_length(ids.flatten()).to_pylist())
    return [list(islice(lengths, answers)) for answers in pc.list_value_length(ids).to_pylist()]


def prompt_ids(directory: RunDirectory, iteration: int | None = None) -> list[str]:
    """Ids of all prompts of the run or of one iteration, training and held out, in order.

    Raises UserError naming a damaged file, as the readers below.
    """
    return sorted(heldout_ids(directory, iteration) | training_ids(directory, iteration))


def training_ids(directory: RunDirectory, iteration: int | None = None) -> set[str]:
    """Those that were trained on."""
    found: set[str] = set()
    for _, path in _shards(directory, iteration):
        found.update(read_table(path, ["prompt_id"])["prompt_id"].to_pylist())
    return found


def heldout_ids(directory: RunDirectory, iteration: int | None = None) -> set[str]:
    """Those that were held out."""
    return {row["prompt_id"] for _, row in _heldout_rows(directory, iteration)}


def read_prompts(directory: RunDirectory, chosen: Collection[str], iteration: int | None = None) -> list[ShownPrompt]:
    """The prompts of those ids, in order, with all their appearances, or with those of one iteration."""
    wanted = set(chosen)
    prompts: dict[str, ShownPrompt] = {}
    found = chain(_rollouts(directory, wanted, iteration), _heldout(directory, wanted, iteration))
    for prompt_id, messages, appearance in found:
        prompts.setdefault(prompt_id, ShownPrompt(prompt_id, messages)).appearances.append(appearance)
    return [prompts[prompt_id] for prompt_id in sorted(prompts)]


Found = tuple[str, list[dict[str, str]], Appearance]


def _iterations(directory: RunDirectory, only: int | None) -> list[int]:
    return iterations_on_disk(directory) if only is None else [only]


def _shards(directory: RunDirectory, iteration: int | None) -> Iterator[tuple[int, Path]]:
    for number in _iterations(directory, iteration):
        yield from ((number, path) for path in shard_files(directory, number))


def _rollouts(directory: RunDirectory, wanted: set[str], iteration: int | None) -> Iterator[Found]:
    ids = pa.array(sorted(wanted), pa.string())
    for number, path in _shards(directory, iteration):
        # These two are a small part of a shard: the rest is read only where one of the ids is wanted.
        known = read_table(path, ["prompt_id", "baseline_kind"])
        if not pc.any(pc.is_in(known["prompt_id"], ids)).as_py():
            continue
        others_only = not set(known["baseline_kind"].unique().to_pylist()) <= set(OWN_FIRST)
        table = read_table(path, COLUMNS + EMBEDDING * others_only)
        table = table.filter(pc.is_in(table["prompt_id"], ids))
        table = table.append_column("tokens", pa.array(token_counts(table))).drop_columns(["completion_ids"])
        for row in table.to_pylist():
            yield row["prompt_id"], row["prompt"], _trained_on(row, number)


def _trained_on(row: dict[str, Any], iteration: int) -> Appearance:
    columns = (row["completion"], row["finish_reason"], row["tokens"], row["score"], row["target"], row["left_out"])
    in_table, told = own_columns(row["table"], row["baseline_kind"]), None
    if in_table is None and row["embedding"] is not None:
        told = from_embeddings(row["embedding"], row["gate"]).tolist()
    cycle = strongest_cycle(in_table or told or [])
    return Appearance(
        kind="rollout",
        iteration=iteration,
        version=row["weight_version"],
        answers=[
            Answer(text, finish, tokens, _short(score), None if left_out else _short(target), left_out)
            for text, finish, tokens, score, target, left_out in zip(*columns, strict=True)
        ],
        table=[[_short(value) for value in line] for line in row["table"]],
        baseline=row["baseline_kind"],
        own_table=None if told is None else [[_short(value) for value in line] for line in told],
        cycle=cycle.answers if cycle else None,
    )


def _heldout(directory: RunDirectory, wanted: set[str], iteration: int | None) -> Iterator[Found]:
    for number, row in _heldout_rows(directory, iteration):
        if row["prompt_id"] in wanted:
            columns = (row["completion"], row["finish_reason"], row["completion_ids"])
            answers = [Answer(text, finish, len(ids)) for text, finish, ids in zip(*columns, strict=True)]
            shown = Appearance(kind="heldout", iteration=number, version=row["weight_version"], answers=answers)
            yield row["prompt_id"], row["prompt"], shown


def _heldout_rows(directory: RunDirectory, iteration: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    for number in _iterations(directory, iteration):
        path = directory.heldout(number)
        if path.is_file():
            yield from ((number, row) for row in read_form(path, Heldout)["prompts"])


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
