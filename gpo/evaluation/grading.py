"""MT-Bench single-answer grading: a chat model gives each first-turn answer a rating from 1 to 10.

The judge's prompts are FastChat's `judge_prompts.jsonl`, given by file: `single-v1`, and `single-math-v1` with the
reference answer for questions that need one. A rating is read as FastChat does, `[[5]]` or else `[5]`. Second turns are
not graded: `gpo generate` answers first turns. So the mean is not MT-Bench's published score, and the record says so.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpo.cluster.runtime import relative
from gpo.errors import StageError, UserError
from gpo.evaluation.chat_client import ChatSettings
from gpo.evaluation.file_record import file_record
from gpo.evaluation.folders import make_folder
from gpo.evaluation.judgement_cache import question_key
from gpo.evaluation.outputs import NAMED, Output, OutputFile, pair_rows, read_outputs
from gpo.evaluation.pair_numbers import standard_error
from gpo.evaluation.prices import Prices, bill
from gpo.evaluation.prompt_forms import read_evaluation_prompts
from gpo.evaluation.questions import Asked, Question, ask_all, usage_of
from gpo.files import write_json
from gpo.printable import tell
from rollout.errors import RolloutInputError
from rollout.prompts import read_rows

FORMAT_VERSION = 1
PLAIN, WITH_REFERENCE = "single-v1", "single-math-v1"
NEED_REFERENCE = ("math", "reasoning", "coding")
"""Categories that FastChat grades with a reference answer."""
REQUEST: dict[str, Any] = {"temperature": 0.0, "max_tokens": 2048}
REMARK = "first turns only: not MT-Bench's published score, which is over two turns"
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeRequest:
    """What the command line asks for, but for the judge."""

    outputs: Path
    grade: Path
    """FastChat's judge_prompts.jsonl."""
    questions: Path
    """FastChat's question.jsonl."""
    references: Path | None
    """FastChat's reference answers."""
    output: Path


def grade(request: GradeRequest, chat: ChatSettings, prices: Prices, cache: Path) -> int:
    """Grade, write `grades.json`, print the means; returns the exit status.

    Raises UserError for files that do not fit, StageError with the questions that got no rating.
    """
    answered = read_outputs(request.outputs)
    rows = _rows(request.questions)
    asked_for = OutputFile(request.questions, "questions", tuple(_instructions(request.questions)), "")
    pairs = pair_rows(asked_for, answered)
    templates, references = read_judge_prompts(request.grade), read_references(request.references)
    groups = []
    for row, other in pairs:
        messages = messages_for(rows[row], answered.rows[other].output, templates, references)
        key = question_key([chat.model, chat.shown_url, REQUEST, messages])
        groups.append([Question(key, {"messages": messages, **REQUEST})])
    make_folder("--output", request.output)
    # What an earlier start wrote must not outlive a start that fails.
    (request.output / "grades.json").unlink(missing_ok=True)
    asked = ask_all(chat, groups, read_rating, cache / "judgements.jsonl", "answers")
    grades = [
        {
            "question_id": rows[row]["question_id"],
            "category": rows[row].get("category"),
            "rating": None if isinstance(result, str) else result[0]["rating"],
            "judgement": result if isinstance(result, str) else result[0]["text"],
        }
        for (row, _), result in zip(pairs, asked.results, strict=True)
    ]
    record = _made(request, answered, chat, asked) | bill(asked, prices) | _numbers(grades)
    write_json(request.output / "grades.json", record)
    _refuse_failed(request, grades)
    tell(f"{answered.generator}, MT-Bench first turns, graded by {chat.model}: {len(grades)} of {len(grades)} answers")
    tell(f"  mean rating   {record['mean']:.2f}" + _error(record["standard_error"]) + f" ({REMARK})")
    for category, numbers in record["by_category"].items():
        tell(f"  {category:<14}{numbers['mean']:.2f} ({numbers['n']})")
    return 0


def read_judge_prompts(path: Path) -> dict[str, Mapping[str, Any]]:
    """The two templates by name; raises UserError when one is missing."""
    try:
        found = {str(row.get("name")): row for row in read_rows(str(path))}
    except RolloutInputError as error:
        raise UserError(f"--grade: {error}") from None
    for name in (PLAIN, WITH_REFERENCE):
        if not all(isinstance(found.get(name, {}).get(part), str) for part in ("system_prompt", "prompt_template")):
            raise UserError(f"--grade {path}: no judge prompt {name!r}; expected FastChat's judge_prompts.jsonl")
    return found


def read_references(path: Path | None) -> dict[Any, str]:
    """The first turn of each reference answer by question id; raises UserError naming the row."""
    if path is None:
        return {}
    try:
        return dict(_reference(row, f"{path}, row {n}") for n, row in enumerate(read_rows(str(path)), start=1))
    except RolloutInputError as error:
        raise UserError(f"--references: {error}") from None


def _reference(row: Mapping[str, Any], where: str) -> tuple[Any, str]:
    try:
        found = row["question_id"], str(row["choices"][0]["turns"][0])
    except (LookupError, TypeError):
        found = None, ""
    if not isinstance(found[0], int | str):
        raise UserError(f"--references {where}: expected `question_id` and `choices` with `turns`, as FastChat's have")
    return found


def messages_for(
    row: Mapping[str, Any], answer: str, templates: Mapping[str, Mapping[str, Any]], references: Mapping[Any, str]
) -> list[dict[str, str]]:
    """What the judge is asked; raises UserError when a question needs a reference that is not there."""
    values = {"question": str(row["turns"][0]), "answer": answer}
    template = templates[PLAIN]
    if row.get("category") in NEED_REFERENCE:
        if row["question_id"] not in references:
            raise UserError(
                f"--references: none for question {row['question_id']} ({row['category']}), which is graded with one; "
                "give FastChat's reference answers"
            )
        template, values["ref_answer_1"] = templates[WITH_REFERENCE], references[row["question_id"]]
    # In one pass: a placeholder inside an answer stays the answer's text.
    filled = re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), str(template["prompt_template"]))
    return [{"role": "system", "content": str(template["system_prompt"])}, {"role": "user", "content": filled}]


def read_rating(answer: Any) -> dict[str, Any]:
    """The rating in a judge's answer; raises ValueError where there is none from 1 to 10."""
    text = str(answer["choices"][0]["message"]["content"])
    for pattern in _RATINGS:
        found = pattern.search(text)
        if found:
            rating = float(found[1])
            if 1 <= rating <= 10:
                return {"rating": rating, "text": text, **usage_of(answer)}
    raise ValueError(f"the answer has no rating [[1]] to [[10]]: {text[-60:]!r}")


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = list(read_rows(str(path)))
    except RolloutInputError as error:
        raise UserError(f"--questions: {error}") from None
    for number, row in enumerate(rows, start=1):
        turns = row.get("turns")
        good = isinstance(turns, list) and turns and isinstance(turns[0], str)
        if not good or not isinstance(row.get("question_id"), int | str):
            raise UserError(f"--questions {path}, row {number}: expected `question_id` and `turns`, as MT-Bench has")
    return rows


def _instructions(path: Path) -> list[Output]:
    try:
        rows = read_evaluation_prompts(str(path))
    except RolloutInputError as error:
        raise UserError(f"--questions: {error}") from None
    return [Output(row.instruction, "", row.dataset, row.prompt.messages) for row in rows]


def _made(request: GradeRequest, answered: OutputFile, chat: ChatSettings, asked: Asked) -> dict[str, Any]:
    """How the grades were made."""
    return {
        "format_version": FORMAT_VERSION,
        "turns": 1,
        "remark": REMARK,
        "outputs": {"file": str(answered.path), "sha256": answered.sha256, "generator": answered.generator},
        "judge": {"model": chat.model, "models_that_answered": asked.models(), "base_url": chat.shown_url, **REQUEST},
        "judge_prompts": file_record(request.grade),
        "questions": file_record(request.questions),
        "references": file_record(request.references),
        "questions_known_from_the_cache": asked.known,
        "requests_sent": asked.counts.requests,
        "faults": dict(asked.counts.faults),
    }


def _numbers(grades: list[dict[str, Any]]) -> dict[str, Any]:
    """No mean where an answer has no rating."""
    failed = any(one["rating"] is None for one in grades)
    ratings = np.array([one["rating"] for one in grades if one["rating"] is not None], dtype=np.float64)
    return {
        "n_asked": len(grades),
        "n_judged": len(ratings),
        "mean": None if failed else float(ratings.mean()),
        "standard_error": None if failed else standard_error(ratings),
        "by_category": {} if failed else _by_category(grades),
        "grades": grades,
    }


def _by_category(grades: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = {}
    for one in grades:
        groups.setdefault(str(one["category"]), []).append(one["rating"])
    return {name: {"n": len(ratings), "mean": sum(ratings) / len(ratings)} for name, ratings in groups.items()}


def _refuse_failed(request: GradeRequest, grades: list[dict[str, Any]]) -> None:
    failed = [one for one in grades if one["rating"] is None]
    if failed:
        named = "; ".join(f"question {json.dumps(one['question_id'])}: {one['judgement']}" for one in failed[:NAMED])
        raise StageError(
            f"{len(failed)} of {len(grades)} answers got no rating ({named}), so there is no mean; all are named in "
            f"{relative(request.output / 'grades.json')}. Start the same command again: what was judged is kept"
        )


def _error(value: float | None) -> str:
    return "" if value is None else f" +- {value:.2f}"
