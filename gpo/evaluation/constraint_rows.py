"""IFEval's constraints from a file, checked before anything is computed.

Constraints come in the published form (`instruction_id_list`, `kwargs`) or in flexeval's (`constraints`: `class_path`,
`init_args`). A constraint has exactly the arguments that its checker knows: for one that is missing the checkers would
draw a number at random, and the accuracy would be another one at every start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.errors import UserError
from rollout.errors import RolloutInputError
from rollout.prompts import read_rows

FLEXEVAL_NAMES = {
    "Existence": "keywords:existence",
    "Frequency": "keywords:frequency",
    "ForbiddenWords": "keywords:forbidden_words",
    "LetterFrequency": "keywords:letter_frequency",
    "ResponseLanguage": "language:response_language",
    "NumberSentences": "length_constraints:number_sentences",
    "NumberParagraphs": "length_constraints:number_paragraphs",
    "NumberWords": "length_constraints:number_words",
    "NthParagraphFirstWord": "length_constraints:nth_paragraph_first_word",
    "NumberPlaceholders": "detectable_content:number_placeholders",
    "Postscript": "detectable_content:postscript",
    "NumberBulletLists": "detectable_format:number_bullet_lists",
    "ConstrainedResponse": "detectable_format:constrained_response",
    "NumberHighlightedSections": "detectable_format:number_highlighted_sections",
    "MultipleSections": "detectable_format:multiple_sections",
    "JsonFormat": "detectable_format:json_format",
    "Title": "detectable_format:title",
    "TwoResponses": "combination:two_responses",
    "RepeatPrompt": "combination:repeat_prompt",
    "EndChecker": "startend:end_checker",
    "Quotation": "startend:quotation",
    "CapitalWordFrequency": "change_case:capital_word_frequency",
    "EnglishCapital": "change_case:english_capital",
    "EnglishLowercase": "change_case:english_lowercase",
    "NoComma": "punctuation:no_comma",
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must fulfil."""

    kind: str
    """IFEval's id, such as `punctuation:no_comma`."""
    arguments: dict[str, Any]


def read_constraints(path: Path) -> list[list[Constraint]]:
    """Of each prompt, in order; raises UserError naming the row."""
    try:
        return [_of_row(row, f"{path}, row {number}") for number, row in enumerate(read_rows(str(path)), start=1)]
    except RolloutInputError as error:
        raise UserError(f"--constraints: {error}") from None


def _of_row(row: Mapping[str, Any], where: str) -> list[Constraint]:
    if isinstance(row.get("instruction_id_list"), list):
        pairs = _published(row["instruction_id_list"], row.get("kwargs"), where)
    elif isinstance(row.get("constraints"), list):
        pairs = [_flexeval(one, where) for one in row["constraints"]]
    else:
        raise UserError(f"{where}: expected IFEval's `instruction_id_list` and `kwargs`, or flexeval's `constraints`")
    if not pairs:
        raise UserError(f"{where}: no constraint")
    return [_constraint(kind, given, where) for kind, given in pairs]


def _published(kinds: list[Any], arguments: Any, where: str) -> list[tuple[Any, Any]]:
    """A constraint without arguments has an empty object there; no `kwargs` at all means that none has any."""
    if arguments is None:
        return [(kind, None) for kind in kinds]
    if not isinstance(arguments, list) or len(arguments) != len(kinds):
        found = len(arguments) if isinstance(arguments, list) else repr(arguments)[:60]
        raise UserError(f"{where}: `kwargs` is {found} for {len(kinds)} constraints; expected an object for each")
    return list(zip(kinds, arguments, strict=True))


def _flexeval(one: Any, where: str) -> tuple[Any, Any]:
    name = str(one.get("class_path", "")).rpartition(".")[2] if isinstance(one, Mapping) else repr(one)
    if name not in FLEXEVAL_NAMES:
        raise UserError(f"{where}: constraint {name!r:.60} is not known; expected one of {', '.join(FLEXEVAL_NAMES)}")
    return FLEXEVAL_NAMES[name], one.get("init_args")


def _constraint(kind: Any, given: Any, where: str) -> Constraint:
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    if kind not in FLEXEVAL_NAMES.values():
        raise UserError(f"{where}: constraint {kind!r:.60} is not known")
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{where}: the arguments of {kind} are {given!r:.60}; expected an object")
    # The hub's form has all arguments of all kinds, null where they are not this kind's.
    arguments = {key: value for key, value in (given or {}).items() if value is not None}
    known = INSTRUCTION_DICT[kind](kind).get_instruction_args_keys()
    if set(arguments) != set(known):
        found = ", ".join(sorted(arguments)) or "none"
        raise UserError(f"{where}: {kind} has the arguments {found}; expected {', '.join(known) or 'none'}")
    return Constraint(kind, arguments)
