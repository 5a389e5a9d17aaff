"""Preference pairs from files: one chosen and one rejected conversation a row.
What it is: the forms in which such data comes (message lists, or instruction with two strings; JSON, JSON
Lines, Parquet), every row checked, ties and repeats dropped and counted. What it is not: it renders and
tokenises nothing, and needs neither torch nor transformers.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.errors import RewardInputError
from reward.row_files import read_rows

Message = dict[str, str]

COLUMNS = "`chosen` and `rejected` as message lists, or `instruction`, `chosen` and `rejected` as strings"


@dataclass(frozen=True)
class PreferencePair:
    """Two conversations that differ in their last message only."""

    chosen: list[Message]
    rejected: list[Message]
    group: str = ""
    """Shared by the pairs of one prompt; given as "", it becomes a hash of the prompt's messages."""
    target_prob: float = 1.0
    """Probability that `chosen` is preferred."""
    margin: float | None = None
    """By how much, in score units, the score shall exceed 0; only a margin loss reads it."""
    template: bool = True
    """Whether the chat template renders it; False: instruction, answer and EOS joined by spaces, as published."""
    source: str = ""
    """Name of the data set it comes from; metrics are told by source."""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", prompt_group(self.chosen[:-1]))

    @property
    def label(self) -> int:
        """1: chosen is preferred, -1: rejected is (a target_prob below one half), 0: neither."""
        return (self.target_prob > 0.5) - (self.target_prob < 0.5)

    @property
    def is_tie(self) -> bool:
        """Whether its two answers are the same."""
        return self.chosen == self.rejected


@dataclass(frozen=True)
class LoadedPairs:
    """Different pairs in file order, and what was left out."""

    pairs: tuple[PreferencePair, ...]
    duplicates: int
    """Rows that repeat an earlier one exactly."""
    ties: int
    """Rows whose two answers are the same."""


def prompt_group(messages: list[Message]) -> str:
    """A short name made of the prompt's content."""
    return hashlib.sha256(_canonical(messages).encode()).hexdigest()[:16]


def read_pairs(path: str | Path) -> LoadedPairs:
    """All pairs of a .json, .jsonl or .parquet file, without ties and repeats.

    Raises RewardInputError that names the file and the row (counted from 1; in JSON Lines its line).
    """
    source = Path(path)
    return different_pairs((pair_of_row(row, where) for where, row in rows_of_file(source)), str(source))


def different_pairs(pairs: Iterable[PreferencePair], source: str) -> LoadedPairs:
    """Pairs without ties and repeats; raises RewardInputError that names the source when nothing is left."""
    seen: dict[str, PreferencePair] = {}
    rows = ties = 0
    for pair in pairs:
        rows += 1
        if pair.is_tie:
            ties += 1
        else:
            seen.setdefault(_canonical(vars(pair)), pair)
    if not seen:
        raise RewardInputError(
            f"{source}: {rows} rows, {ties} of them ties, leave no pair; expected at least one with {COLUMNS}"
        )
    return LoadedPairs(tuple(seen.values()), duplicates=rows - ties - len(seen), ties=ties)


def pair_of_row(row: Mapping[str, Any], where: str) -> PreferencePair:
    """One checked pair; `where` names the row in errors."""
    chosen, rejected = _conversations(row, where)
    if chosen[:-1] != rejected[:-1]:
        raise RewardInputError(
            f"{where}: chosen ({len(chosen)} messages) and rejected ({len(rejected)}) differ before their "
            "last message; expected two answers to the same prompt"
        )
    return PreferencePair(chosen, rejected, _group(row, where), _target_prob(row, where), _number(row, "margin", where))


def _conversations(row: Mapping[str, Any], where: str) -> tuple[list[Message], list[Message]]:
    second = "rejected" if row.get("rejected") is not None else "reject"
    missing = [name for name in ("chosen", second) if row.get(name) is None]
    if missing:
        wanted = "rejected" if missing[0] == "reject" else missing[0]
        columns = ", ".join(map(str, row)) or "no columns"
        raise RewardInputError(f"{where}: there is no {wanted!r}, found {columns}; expected {COLUMNS}")
    if isinstance(row["chosen"], list):
        return _messages(row["chosen"], "chosen", where), _messages(row[second], second, where)
    instruction = row.get("instruction")
    if not isinstance(instruction, str):
        raise RewardInputError(
            f"{where}: chosen is of type {type(row['chosen']).__name__} and instruction is "
            f"{instruction!r:.60}; expected {COLUMNS}"
        )
    prompt = [{"role": "user", "content": instruction}]
    return [*prompt, _answer(row, "chosen", where)], [*prompt, _answer(row, second, where)]


def _answer(row: Mapping[str, Any], field: str, where: str) -> Message:
    value = row[field]["response"] if isinstance(row[field], dict) and "response" in row[field] else row[field]
    if not isinstance(value, str):
        raise RewardInputError(f"{where}: {field} is {value!r:.60}, expected a string next to `instruction`")
    return {"role": "assistant", "content": value}


def _messages(value: Any, field: str, where: str) -> list[Message]:
    if not isinstance(value, list) or len(value) < 2:
        found = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.60}"
        raise RewardInputError(f"{where}: {field} is {found}, expected at least two messages: a prompt and its answer")
    messages = [_message(message, f"{where}, {field}, message {place}") for place, message in enumerate(value)]
    if messages[-1]["role"] != "assistant":
        raise RewardInputError(
            f"{where}: {field} ends with a {messages[-1]['role']!r} message, expected the assistant's answer"
        )
    return messages


def _message(message: Any, where: str) -> Message:
    found = message if isinstance(message, dict) else {}
    role, content = found.get("role"), found.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise RewardInputError(f"{where} is {message!r:.80}, expected {{role, content}} of strings")
    # Other keys (ids, scores) are no part of the conversation and would hide duplicates.
    return {"role": role, "content": content}


def _group(row: Mapping[str, Any], where: str) -> str:
    value = row.get("group")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RewardInputError(f"{where}: group is {value!r:.60}, expected a name or a whole number")
    return str(value)


def _target_prob(row: Mapping[str, Any], where: str) -> float:
    value = _number(row, "target_prob", where)
    if value is None:
        return 1.0
    if not 0 <= value <= 1:
        raise RewardInputError(f"{where}: target_prob is {value}, expected a probability in [0, 1]")
    return value


def _number(row: Mapping[str, Any], field: str, where: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    number = finite_number(value)
    if number is None:
        raise RewardInputError(f"{where}: {field} is {value!r:.60}, expected a finite number")
    return number


def finite_number(value: Any) -> float | None:
    """The value where it is a number, and no whole one beyond every float; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def rows_of_file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of every row of the file; raises RewardInputError for the first that holds no object."""
    for row in read_rows(path):
        where = f"{path}, row {row.number}"
        if row.value is None:
            raise RewardInputError(f"{where}: {row.fault}; expected an object with {COLUMNS}")
        yield where, row.value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)
