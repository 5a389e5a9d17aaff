"""IFEval: constraints that a program can verify, as an extra check of one file of answers.

The checkers are Google's, from the package `if-verifiable` (the extra `ifeval`). Constraints come in the published form
(`instruction_id_list`, `kwargs`) or in flexeval's (`constraints`: `class_path`, `init_args`). Strict is the answer as
it stands; loose also passes if it does so without its first or last line or without asterisks, as published.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import relative
from gpo.errors import StageError, UserError
from gpo.evaluation.outputs import NAMED, Output, OutputFile, pair_rows, read_outputs
from gpo.evaluation.prompt_forms import read_evaluation_prompts
from gpo.files import write_json
from rollout.errors import RolloutInputError
from rollout.prompts import read_rows

FORMAT_VERSION = 1
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


@dataclass(frozen=True, slots=True)
class Checked:
    """One constraint on one answer."""

    kind: str
    strict: bool
    loose: bool
    failure: str = ""
    """Why it could not be checked."""


def check_constraints(outputs: Path, constraints: Path, output: Path) -> int:
    """Check every answer, write `ifeval.json`, print the numbers; returns the exit status.

    Raises UserError for files that do not fit, StageError with what could not be checked.
    """
    if find_spec("if_verifiable") is None:
        raise UserError("--constraints: the checkers are not installed; pip install 'gpo-align[ifeval]'")
    asked, answered = read_constraints(constraints), read_outputs(outputs)
    prompts = OutputFile(constraints, "constraints", tuple(_prompts(constraints)), "")
    pairs = pair_rows(prompts, answered)
    output.mkdir(parents=True, exist_ok=True)
    found = [
        [_check(one, prompts.rows[row].instruction, answered.rows[other].output) for one in asked[row]]
        for row, other in pairs
    ]
    failures = Counter(one.failure for checks in found for one in checks if one.failure)
    numbers = accuracies(found) if not failures else dict.fromkeys(ACCURACIES)
    record = {
        "format_version": FORMAT_VERSION,
        "outputs": {"file": str(answered.path), "sha256": answered.sha256, "generator": answered.generator},
        "constraints": str(constraints),
        "prompts": len(found),
        "checks": sum(map(len, found)),
        "not_checked": dict(failures),
        **numbers,
        "strict_by_kind": by_kind(found),
    }
    write_json(output / "ifeval.json", record)
    if failures:
        told = "; ".join(f"{count} x {reason}" for reason, count in failures.most_common(NAMED))
        raise StageError(
            f"{sum(failures.values())} of {record['checks']} constraints could not be checked ({told}), so there is no "
            f"accuracy; the kinds that could are in {relative(output / 'ifeval.json')}"
        )
    print(f"{answered.generator}: {len(found)} prompts, {record['checks']} constraints")
    for name in ACCURACIES:
        print(f"  {name.replace('_', ' '):<26}{numbers[name]:.2%}")
    return 0


ACCURACIES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
"""IFEval's four: all constraints of a prompt, or each by itself."""


def accuracies(found: list[list[Checked]]) -> dict[str, Any]:
    """The four accuracies, in [0, 1]."""
    every = [one for checks in found for one in checks]
    return {
        "prompt_strict": sum(all(one.strict for one in checks) for checks in found) / len(found),
        "instruction_strict": sum(one.strict for one in every) / len(every),
        "prompt_loose": sum(all(one.loose for one in checks) for checks in found) / len(found),
        "instruction_loose": sum(one.loose for one in every) / len(every),
    }


def by_kind(found: list[list[Checked]]) -> dict[str, dict[str, float]]:
    """Strict accuracy of each kind that could be checked, and how often it was."""
    every = [one for checks in found for one in checks if not one.failure]
    counts, fulfilled = Counter(one.kind for one in every), Counter(one.kind for one in every if one.strict)
    return {kind: {"n": counts[kind], "strict": fulfilled[kind] / counts[kind]} for kind in sorted(counts)}


def read_constraints(path: Path) -> list[list[Constraint]]:
    """Of each prompt, in order; raises UserError naming the row."""
    try:
        return [_of_row(row, f"{path}, row {number}") for number, row in enumerate(read_rows(str(path)), start=1)]
    except RolloutInputError as error:
        raise UserError(f"--constraints: {error}") from None


def _prompts(path: Path) -> list[Output]:
    rows = read_evaluation_prompts(str(path))
    return [Output(row.instruction, "", row.dataset, row.prompt.messages) for row in rows]


def _of_row(row: Mapping[str, Any], where: str) -> list[Constraint]:
    if isinstance(row.get("instruction_id_list"), list):
        arguments = row.get("kwargs") or [{}] * len(row["instruction_id_list"])
        pairs = list(zip(row["instruction_id_list"], arguments, strict=False))
    elif isinstance(row.get("constraints"), list):
        pairs = [_flexeval(one, where) for one in row["constraints"]]
    else:
        raise UserError(f"{where}: expected IFEval's `instruction_id_list` and `kwargs`, or flexeval's `constraints`")
    unknown = [kind for kind, _ in pairs if kind not in FLEXEVAL_NAMES.values()]
    if unknown or not pairs:
        raise UserError(f"{where}: constraint {unknown[0]!r} is not known" if unknown else f"{where}: no constraint")
    return [
        Constraint(kind, {key: value for key, value in (given or {}).items() if value is not None})
        for kind, given in pairs
    ]


def _flexeval(one: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    name = str(one.get("class_path", "")).rpartition(".")[2] if isinstance(one, Mapping) else repr(one)
    if name not in FLEXEVAL_NAMES:
        raise UserError(f"{where}: constraint {name!r:.60} is not known; expected one of {', '.join(FLEXEVAL_NAMES)}")
    return FLEXEVAL_NAMES[name], one.get("init_args") or {}


def _check(constraint: Constraint, prompt: str, answer: str) -> Checked:
    from if_verifiable.common import evaluate_instructions
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    try:
        found, _ = evaluate_instructions(answer, [constraint.kind], [constraint.arguments], prompt, INSTRUCTION_DICT)
    except LookupError:
        # NLTK's data are no part of its package.
        reason = f"{constraint.kind} needs NLTK's sentence data: python -m nltk.downloader punkt_tab"
        return Checked(constraint.kind, False, False, reason)
    # An empty answer has no result and fulfils nothing.
    return (
        Checked(constraint.kind, found[0].strict_pass, found[0].loose_pass)
        if found
        else Checked(constraint.kind, False, False)
    )
