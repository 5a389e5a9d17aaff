"""MT-Bench single-answer grading against a scripted server.

Run: python -m pytest tests/gpo/evaluation/test_grading.py
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.evaluation.grading import messages_for, read_judge_prompts, read_rating, read_references
from tests.gpo.command_line import Outcome, gpo
from tests.gpo.evaluation.scripted_server import Reply, good, serve
from tests.gpo.evaluation.small_evaluation import read

FASTCHAT = Path(__file__).parents[4] / "shared" / "data" / "fastchat"
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["Two and two?", "And two?"]},
]
MATH = "Q: {question}\nR: {ref_answer_1}\nA: {answer}"
PROMPTS = [
    {"name": "single-v1", "system_prompt": "Judge.", "prompt_template": "Q: {question}\nA: {answer}"},
    {"name": "single-math-v1", "system_prompt": "Check.", "prompt_template": MATH},
]
REFERENCES = [{"question_id": 111, "choices": [{"turns": ["Four.", "Six."]}]}]
ANSWERS = [
    {"instruction": "Two and two?", "output": "4 {question}"},
    {"instruction": "Write a line.", "output": "Rain."},
]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rated(text: str) -> Reply:
    return good(0.5, message={"role": "assistant", "content": text})


def grade(
    folder: Path,
    url: str,
    *more: str | Path,
    references: list[Any] | None = REFERENCES,
    questions: list[Any] = QUESTIONS,
) -> Outcome:
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    words: list[str | Path] = ["--outputs", folder / "answers.json", "--judge", "openai:scripted", "--base-url", url]
    words += ["--grade", lines(folder / "prompts.jsonl", PROMPTS), "--output", folder / "out", "--tries", "2"]
    words += ["--questions", lines(folder / "questions.jsonl", questions)]
    if references is not None:
        words += ["--references", lines(folder / "references.jsonl", references)]
    return gpo(folder, "eval", *words, *more)


def test_every_first_turn_is_graded_with_the_prompt_of_its_category(tmp_path: Path) -> None:
    with serve(lambda before, question: rated("Good. [[9]]" if "Rain." in question else "Rating: [5.5]")) as served:
        found = grade(tmp_path, served.url)
        assert found.status == 0, found
        assert grade(tmp_path, served.url, "--price-prompt", "10", "--price-completion", "30").status == 0
        assert sum(served.asked.values()) == 2, "a second start asks nobody"
    assert set(served.asked) == {"Q: Write a line.\nA: Rain.", "Q: Two and two?\nR: Four.\nA: 4 {question}"}
    assert {body["messages"][0]["content"] for body in served.bodies} == {"Judge.", "Check."}
    record = read(tmp_path / "out" / "grades.json")
    assert [one["rating"] for one in record["grades"]] == [9.0, 5.5] and record["mean"] == 7.25
    assert record["by_category"]["math"] == {"n": 1, "mean": 5.5} and record["n_judged"] == record["n_asked"] == 2
    assert "mean rating   7.25 +- 1.75 (first turns only" in found.printed
    assert record["turns"] == 1 and "not MT-Bench's published score" in record["remark"]
    assert record["tokens"] == {"prompt": 200, "completion": 2}
    assert record["tokens_of_this_start"] == {"prompt": 0, "completion": 0}, "the record is the second start's"
    assert record["price_usd"] == pytest.approx((200 * 10 + 2 * 30) / 1e6) and record["price_usd_of_this_start"] == 0
    for name, file in (("judge_prompts", "prompts"), ("questions", "questions"), ("references", "references")):
        content = (tmp_path / f"{file}.jsonl").read_bytes()
        assert record[name]["sha256"] == hashlib.sha256(content).hexdigest()
    with serve(lambda before, question: Reply(401)) as refusing:
        assert grade(tmp_path, refusing.url).status == 2
    assert not (tmp_path / "out" / "grades.json").exists(), "an old mean does not outlive a start that is refused"


def test_an_answer_without_a_rating_is_asked_again_and_then_a_failure_without_a_mean(tmp_path: Path) -> None:
    with serve(lambda before, question: rated("Hm." if "Rain." in question else "[[3]]")) as served:
        found = grade(tmp_path, served.url)
    assert found.status == 1 and "1 of 2 answers got no rating (question 81: the answer has no rating" in found.said
    assert served.asked["Q: Write a line.\nA: Rain."] == 2
    record = read(tmp_path / "out" / "grades.json")
    assert record["mean"] is None and record["n_judged"] == 1


def test_mistakes_are_status_2(tmp_path: Path) -> None:
    with serve(lambda before, question: rated("[[3]]")) as served:
        for found, told in (
            (grade(tmp_path, served.url, references=None), "--references: none for question 111 (math)"),
            (
                grade(tmp_path, served.url, references=[*REFERENCES, {"question_id": 112}]),
                "references.jsonl, row 2: expected `question_id` and `choices`",
            ),
            (grade(tmp_path, served.url, "--output", tmp_path / "answers.json"), "cannot be made a folder"),
            (grade(tmp_path, served.url, questions=[{**QUESTIONS[0], "turns": [" "]}]), "row 1: the prompt is empty"),
            (grade(tmp_path, served.url, questions=[{**QUESTIONS[0], "turns": [1]}]), "row 1: expected `question_id`"),
            (grade(tmp_path, served.url, "--judge", "gpm:x"), "--grade: expected --judge openai:MODEL"),
            (grade(tmp_path, served.url, "--top-logprobs", "7"), "--top-logprobs: without effect with --grade"),
            (grade(tmp_path, served.url, "--grade", tmp_path / "questions.jsonl"), "no judge prompt 'single-v1'"),
            (grade(tmp_path, served.url, "--questions", tmp_path / "prompts.jsonl"), "row 1: expected `question_id`"),
        ):
            assert found.status == 2 and told in found.said, found
        assert not served.asked


def test_ratings_are_read_as_fastchat_does() -> None:
    def reading(text: str) -> float:
        return float(read_rating(json.loads(rated(text).text))["rating"])

    assert reading("Rating: [[8]]. Not [2].") == 8 and reading("[7.5]") == 7.5
    for text in ("no rating", "[[0]]", "[[11]]"):
        with pytest.raises(ValueError, match="has no rating"):
            reading(text)


@pytest.mark.skipif(not FASTCHAT.is_dir(), reason=f"{FASTCHAT} is not there")
def test_fastchats_own_files_fit_together() -> None:
    templates = read_judge_prompts(FASTCHAT / "judge_prompts.jsonl")
    references = read_references(FASTCHAT / "mt_bench_reference_answer_gpt-4.jsonl")
    questions = [json.loads(line) for line in (FASTCHAT / "mt_bench_question.jsonl").read_text().splitlines()]
    for row in questions:
        system, user = messages_for(row, "MY ANSWER", templates, references)
        assert "{" not in user["content"].replace(row["turns"][0], "").replace(
            references.get(row["question_id"], ""), ""
        )
        assert "MY ANSWER" in user["content"] and "[[rating]]" in system["content"] + user["content"]
    with pytest.raises(UserError, match=r"none for question \d+ \(reasoning\)"):
        for row in questions:
            messages_for(row, "x", templates, {})
