"""AlpacaEval's `model_outputs.json`: answers of one generator, read, checked and paired with another's.

A row has `instruction`, `output`, and normally `dataset` and `generator`; `messages` is ours and stands only where the
prompt is more than one user turn. Light: no torch, so that mistakes are found before anything heavy starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.errors import UserError
from gpo.evaluation.row_numbers import named_rows
from gpo.files import file_hash
from rollout.errors import RolloutInputError
from rollout.prompts import Message, read_rows

NAMED = 3
"""Failures that a message names with their reasons; the rest is counted."""
MISSING_NAMED = 10
"""Missing instructions that a message quotes; all are named by their rows."""


@dataclass(frozen=True, slots=True)
class Output:
    """One answer."""

    instruction: str
    output: str
    dataset: str
    messages: tuple[tuple[str, str], ...]
    """(role, content) of the prompt's turns, for a judge that renders them itself."""

    @property
    def asked(self) -> str:
        """The prompt as one text, for a judge that reads one: with roles where it is more than one user turn."""
        if [role for role, _ in self.messages] == ["user"]:
            return self.instruction
        return "\n\n".join(f"[{role}]\n{content}" for role, content in self.messages)

    def conversation(self, system: str | None = None) -> list[Message]:
        """Prompt and answer; `system` goes before a prompt that has no system message."""
        turns = list(self.messages)
        if system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", system))
        return [{"role": role, "content": content} for role, content in [*turns, ("assistant", self.output)]]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of answers by one generator."""

    path: Path
    generator: str
    rows: tuple[Output, ...]
    sha256: str

    @property
    def average_length(self) -> float:
        """Mean characters an answer."""
        return sum(len(row.output) for row in self.rows) / len(self.rows)


def read_outputs(path: Path) -> OutputFile:
    """Read and check a file; raises UserError that names the row (counted from 1) and the field."""
    try:
        values = list(read_rows(str(path)))
    except RolloutInputError as error:
        raise UserError(str(error)) from None
    if not values:
        raise UserError(f"{path}: there is no row in it; expected answers with `instruction` and `output`")
    rows = tuple(_output_of_row(row, f"{path}, row {number}") for number, row in enumerate(values, start=1))
    generators = {str(row["generator"]) for row in values if row.get("generator") is not None}
    if len(generators) > 1:
        listed = ", ".join(sorted(generators)[:NAMED])
        raise UserError(f"{path}: answers of {len(generators)} generators ({listed}, ...); expected a file for each")
    generator = generators.pop() if generators else path.stem
    return OutputFile(path, generator, rows, file_hash(path))


def _output_of_row(row: Mapping[str, Any], where: str) -> Output:
    instruction, extra = _text(row, "instruction", where), row.get("input") or ""
    if not isinstance(extra, str):
        raise UserError(f"{where}: `input` is {extra!r:.60}, expected text")
    if extra.strip():
        instruction = f"{instruction}\n\n{extra}"
    dataset = row.get("dataset")
    return Output(
        instruction=instruction,
        output=_text(row, "output", where),
        dataset=dataset if isinstance(dataset, str) else "",
        messages=_turns(row["messages"], where) if row.get("messages") else (("user", instruction),),
    )


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        found = f"`{field}` is {value!r:.60}" if field in row else f"there is no `{field}`, only {sorted(row)}"
        raise UserError(f"{where}: {found}; expected AlpacaEval's form with the texts `instruction` and `output`")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: `{field}` has half a surrogate pair, which no tokenizer reads; mend it") from None
    return value


def _turns(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    good = isinstance(value, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    if not good:
        raise UserError(f"{where}: `messages` must be a list of objects with the texts `role` and `content`")
    return tuple((turn["role"], turn["content"]) for turn in value)


def pair_rows(first: OutputFile, second: OutputFile) -> list[tuple[int, int]]:
    """(row of `first`, row of `second`) with the same instruction, in the order of `first`.

    Repeated instructions are paired by their order. Raises UserError when either file lacks a row of the other: a win
    rate over what happens to be there in both is not the one that was asked for.
    """
    places = {key: place for place, key in enumerate(_keys(second))}
    keys = _keys(first)
    _refuse_missing(second, [place for place, key in enumerate(keys) if key not in places], first)
    known = set(keys)
    _refuse_missing(first, [place for key, place in places.items() if key not in known], second)
    pairs = [(place, places[key]) for place, key in enumerate(keys)]
    for one, other in pairs:
        if first.rows[one].messages != second.rows[other].messages:
            raise UserError(
                f"{first.path}, row {one + 1} and {second.path}, row {other + 1} have the same instruction but other "
                "`messages`; expected answers to the same prompt"
            )
    return pairs


def _keys(file: OutputFile) -> list[tuple[str, int]]:
    seen: dict[str, int] = {}
    keys = []
    for row in file.rows:
        occurrence = seen.get(row.instruction, 0)
        seen[row.instruction] = occurrence + 1
        keys.append((row.instruction, occurrence))
    return keys


def _refuse_missing(file: OutputFile, missing: Sequence[int], other: OutputFile) -> None:
    """Raises UserError where `file` lacks rows of `other`, given by their places there."""
    if not missing:
        return
    named = "; ".join(repr(other.rows[place].instruction[:60]) for place in missing[:MISSING_NAMED])
    named += f"; and {len(missing) - MISSING_NAMED} more" if len(missing) > MISSING_NAMED else ""
    raise UserError(
        f"{file.path}: {len(missing)} of the {len(other.rows)} instructions of {other.path} are missing: {named} "
        f"({named_rows(place + 1 for place in missing)} there). Generate the missing answers (`gpo generate` with the "
        "same prompts), or give files over the same prompts"
    )
