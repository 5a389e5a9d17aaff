"""IFEval: constraints that a program can verify, as an extra check of one file of answers.

The checkers are Google's, from the package `if-verifiable` (the extra `ifeval`). Strict is the answer as it stands, but
for what the package cuts off first: white space at both ends, and all up to a `</think>`. Loose also passes if it does
so without its first or last line or without asterisks, as published.
"""

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpo.cluster.runtime import relative
from gpo.errors import StageError, UserError
from gpo.evaluation.constraint_rows import Constraint, read_constraints
from gpo.evaluation.file_record import file_record, package_versions
from gpo.evaluation.folders import make_folder
from gpo.evaluation.outputs import NAMED, Output, OutputFile, pair_rows, read_outputs
from gpo.evaluation.prompt_forms import read_evaluation_prompts
from gpo.evaluation.row_numbers import named_rows
from gpo.files import write_json
from gpo.printable import tell
from rollout.errors import RolloutInputError

FORMAT_VERSION = 1
LANGUAGE_SEED = 0
"""Of langdetect, which guesses the language of a short text by random draws."""
CHECKERS = ("if-verifiable", "langdetect", "nltk")
"""Packages that decide the numbers."""


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

    Raises UserError for files that do not fit, StageError with what could not be checked, and where.
    """
    if find_spec("if_verifiable") is None:
        raise UserError("--constraints: the checkers are not installed; pip install 'gpo-align[ifeval]'")
    asked, answered = read_constraints(constraints), read_outputs(outputs)
    prompts = OutputFile(constraints, "constraints", tuple(_prompts(constraints)), "")
    pairs = pair_rows(prompts, answered)
    make_folder("--output", output)
    # What an earlier start wrote must not outlive a start that fails.
    (output / "ifeval.json").unlink(missing_ok=True)
    _seed_the_language_detector()
    found = [
        [_check(one, prompts.rows[row].instruction, answered.rows[other].output) for one in asked[row]]
        for row, other in pairs
    ]
    failures = not_checked(found)
    numbers = accuracies(found) if not failures else dict.fromkeys(ACCURACIES)
    record = {
        "format_version": FORMAT_VERSION,
        "outputs": {"file": str(answered.path), "sha256": answered.sha256, "generator": answered.generator},
        "constraints": file_record(constraints),
        "checkers": package_versions(CHECKERS),
        "language_seed": LANGUAGE_SEED,
        "prompts": len(found),
        "checks": sum(map(len, found)),
        "not_checked": failures,
        **numbers,
        "strict_by_kind": by_kind(found),
    }
    write_json(output / "ifeval.json", record)
    if failures:
        count = sum(map(len, failures.values()))
        told = "; ".join(f"{reason} in {named_rows(rows)}" for reason, rows in list(failures.items())[:NAMED])
        raise StageError(
            f"{count} of {record['checks']} constraints could not be checked ({told}), so there is no accuracy; all "
            f"rows of {constraints} that could not, and the kinds that could, are in {relative(output / 'ifeval.json')}"
        )
    tell(f"{answered.generator}: {len(found)} prompts, {record['checks']} constraints")
    for name in ACCURACIES:
        tell(f"  {name.replace('_', ' '):<26}{numbers[name]:.2%}")
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


def not_checked(found: list[list[Checked]]) -> dict[str, list[int]]:
    """Each reason with the rows (counted from 1) that it stopped, the commonest first."""
    rows: dict[str, list[int]] = {}
    for number, checks in enumerate(found, start=1):
        for one in checks:
            if one.failure:
                rows.setdefault(one.failure, []).append(number)
    return dict(sorted(rows.items(), key=lambda item: -len(item[1])))


def _prompts(path: Path) -> list[Output]:
    try:
        rows = read_evaluation_prompts(str(path))
    except RolloutInputError as error:
        raise UserError(f"--constraints: {error}") from None
    return [Output(row.instruction, "", row.dataset, row.prompt.messages) for row in rows]


def _seed_the_language_detector() -> None:
    """Without a seed the same answers would have another accuracy at the next start."""
    from langdetect import DetectorFactory

    DetectorFactory.seed = LANGUAGE_SEED


def _check(constraint: Constraint, prompt: str, answer: str) -> Checked:
    from if_verifiable.common import evaluate_instructions
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    try:
        found, _ = evaluate_instructions(answer, [constraint.kind], [constraint.arguments], prompt, INSTRUCTION_DICT)
    except Exception as error:  # Of a checker that is not ours, for one constraint: a failure of this row, and told.
        return Checked(constraint.kind, False, False, f"{constraint.kind} {_reason(error)}")
    # An empty answer has no result and fulfils nothing.
    return (
        Checked(constraint.kind, found[0].strict_pass, found[0].loose_pass)
        if found
        else Checked(constraint.kind, False, False)
    )


def _reason(error: Exception) -> str:
    # NLTK's data are no part of its package, and it says so with a bare LookupError; a KeyError is something else.
    if type(error) is LookupError:
        return "needs NLTK's sentence data (python -m nltk.downloader punkt_tab)"
    return f"fails with {type(error).__name__}: {error}"[:200]
