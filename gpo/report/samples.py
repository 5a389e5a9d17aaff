"""Prompts with their answers as a person wants to see them, read from the shards and held-out files of a run.

Only the columns that are shown are read: no embeddings, and of token ids only how many there are. A prompt stands
once, with an *appearance* for each iteration that asked it, in training (`rollout`) or held out (`heldout`).
"""

import json
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

COLUMNS = (
    "prompt_id prompt weight_version completion completion_ids finish_reason score target left_out table baseline_kind"
).split()
OWN_FIRST = ("self", "optimistic")
"""Baselines whose first K columns are the answers themselves."""
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
    cycle: tuple[int, int, int] | None = None
    """The strongest cycle among the answers, by index."""


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt and all its appearances, training first, in the order of iterations."""

    prompt_id: str
    messages: list[dict[str, str]]
    appearances: list[Appearance] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Selection:
    """The prompts to show and how many there are."""

    prompts: list[ShownPrompt]
    total: int

    def rule(self) -> str:
        """One sentence on what is shown."""
        if len(self.prompts) == self.total:
            return f"All {self.total:,} prompts are shown."
        return (
            f"{len(self.prompts):,} of {self.total:,} prompts are shown: those with the smallest ids. An id is a hash "
            "of the prompt, so this is a random sample, and the same one each time."
        )


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


def select_prompts(directory: RunDirectory, limit: int) -> Selection:
    """Prompts of a run for a sample browser, `limit` at most, each with all its appearances."""
    found = prompt_ids(directory)
    return Selection(read_prompts(directory, found[:limit]), len(found))


def prompt_ids(directory: RunDirectory, iteration: int | None = None) -> list[str]:
    """Ids of all prompts of the run or of one iteration, training and held out, in order.

    Raises UserError naming a damaged file, as the readers below.
    """
    found = {row["prompt_id"] for _, row in _heldout_rows(directory, iteration)}
    for _, path in _shards(directory, iteration):
        found.update(read_table(path, ["prompt_id"])["prompt_id"].to_pylist())
    return sorted(found)


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
        # Ids are a small part of a shard: the rest is read only where one of them is wanted.
        if not pc.any(pc.is_in(read_table(path, ["prompt_id"])["prompt_id"], ids)).as_py():
            continue
        table = read_table(path, COLUMNS)
        table = table.filter(pc.is_in(table["prompt_id"], ids))
        table = table.append_column("tokens", pa.array(token_counts(table))).drop_columns(["completion_ids"])
        for row in table.to_pylist():
            yield row["prompt_id"], row["prompt"], _trained_on(row, number)


def _trained_on(row: dict[str, Any], iteration: int) -> Appearance:
    columns = (row["completion"], row["finish_reason"], row["tokens"], row["score"], row["target"], row["left_out"])
    own = own_columns(row["table"], row["baseline_kind"])
    cycle = strongest_cycle(own) if own else None
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
        cycle=cycle.answers if cycle else None,
    )


def own_columns(table: list[list[float]], baseline: str | None) -> list[list[float]] | None:
    """The [K][K] part of a table that compares a prompt's answers with each other; None where there is none."""
    return [line[: len(table)] for line in table] if baseline in OWN_FIRST else None


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
            yield from ((number, row) for row in read_json(path)["prompts"])


def read_json(path: Path) -> Any:
    """A JSON file of the run; raises UserError naming it where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); remove it and start the run again to have it anew") from None


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
