"""Evaluation sets as prompts: AlpacaEval, MT-Bench first turns, Arena-Hard, IFEval, or any prompts file.

What it is: each row of a file or hub set becomes a prompt, the name of the set it belongs to, and the text that stands
for it in AlpacaEval's `instruction` field. What it is not: it splits nothing and leaves nothing out; a repeated prompt
stays a row of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.errors import RolloutInputError
from rollout.prompts import Message, Prompt, prompt_of_row, read_rows

ARENA_HARD_2 = ("hard_prompt", "creative_writing")
"""Categories of Arena-Hard 2.0; 0.1 has its own name there."""


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One row of an evaluation set."""

    prompt: Prompt
    dataset: str
    instruction: str
    """What AlpacaEval's files call the prompt: its turns without a system message, joined by blank lines."""
    occurrence: int
    """0 for the first row with this prompt, 1 for its first repetition."""

    @property
    def messages(self) -> list[Message] | None:
        """The prompt where `instruction` does not say it all: several turns, or a system message."""
        turns = self.prompt.as_messages()
        return None if len(turns) == 1 and turns[0]["role"] == "user" else turns


def read_evaluation_prompts(source: str, *, column: str = "auto") -> list[EvaluationPrompt]:
    """All rows in order; raises RolloutInputError that names the file and the row (counted from 1)."""
    fallback = source.removeprefix("hub:").partition(":")[0] if source.startswith("hub:") else Path(source).stem
    found: list[EvaluationPrompt] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(read_rows(source), start=1):
        prompt = prompt_of_row(_with_prompt(row), column=column, where=f"{source}, row {number}")
        occurrence = seen.get(prompt.prompt_id, 0)
        seen[prompt.prompt_id] = occurrence + 1
        found.append(EvaluationPrompt(prompt, dataset_of_row(row) or fallback, instruction_of(prompt), occurrence))
    if not found:
        raise RolloutInputError(f"{source}: there is no row in it; expected at least one prompt")
    return found


def dataset_of_row(row: Mapping[str, Any]) -> str | None:
    """The set a row says or shows that it belongs to; None where it does neither."""
    if isinstance(row.get("dataset"), str):
        return str(row["dataset"])
    category = str(row.get("category", ""))
    if category.startswith("arena-hard") or ("uid" in row and category in ARENA_HARD_2):
        return "arena_hard"
    if ("turns" in row and "question_id" in row) or ("prompt_id" in row and _is_texts(row.get("prompt"))):
        return "mt_bench"
    if "constraints" in row or "instruction_id_list" in row:
        return "ifeval"
    return None


def instruction_of(prompt: Prompt) -> str:
    """The text that stands for a prompt in AlpacaEval's files."""
    return "\n\n".join(content for role, content in prompt.messages if role != "system")


def _with_prompt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """MT-Bench and Arena-Hard keep questions in `turns`, as texts or as objects with `content`; the first counts.

    So it does where `prompt` is a list of texts, as in MT-Bench's form on the hub.
    """
    if _is_texts(row.get("prompt")):
        return {**row, "prompt": row["prompt"][0]}
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or any(row.get(name) is not None for name in ("messages", "prompt")):
        return row
    first = turns[0]
    return {**row, "prompt": first.get("content") if isinstance(first, Mapping) else first}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)
