"""Many questions at once: what they take, which are asked once, and when the others are not asked.

Run: python -m pytest tests/gpo/evaluation/test_questions.py
"""

from pathlib import Path

from gpo.evaluation.chat_client import ChatSettings
from gpo.evaluation.judgement_cache import question_key
from gpo.evaluation.openai_judge import read_answer
from gpo.evaluation.questions import Asked, Question, ask_all
from tests.gpo.evaluation.scripted_server import Reply, good, serve

TOO_LONG = Reply(400, '{"error": {"message": "context too long"}}')
UNUSABLE = good(0.5, logprobs=None)


def ask(folder: Path, url: str, *groups: str, tries: int = 1) -> Asked:
    """A group a word, a question a letter."""
    settings = ChatSettings(model="scripted", base_url=url, timeout_seconds=20, tries=tries)
    asked = [
        [Question(question_key(text), {"messages": [{"role": "user", "content": text}]}) for text in group]
        for group in groups
    ]
    return ask_all(settings, asked, read_answer, folder / "judgements.jsonl", "words")


def of(answers: int) -> dict[str, int]:
    return {"prompt": 100 * answers, "completion": answers}


def test_tokens_are_those_of_every_answer_and_of_this_start_apart(tmp_path: Path) -> None:
    def script(before: int, question: str) -> Reply:
        return UNUSABLE if question == "a" and before == 0 else TOO_LONG if question == "z" else good(0.5)

    with serve(script) as served:
        # a twice, the good half of bz, c once though it stands three times.
        found = ask(tmp_path, served.url, "a", "bz", "c", "cc", tries=2)
        assert isinstance(found.results[1], str)
        assert found.tokens == dict(found.counts.tokens) == of(4)
        again = ask(tmp_path, served.url, "a", "c", "d")
    assert again.tokens == of(4) and dict(again.counts.tokens) == of(1)
    assert ask(tmp_path, served.url, "a").tokens == of(2), "only what the questions of this evaluation took"


def test_answers_without_use_are_paid_for_even_where_none_comes(tmp_path: Path) -> None:
    with serve(lambda before, question: UNUSABLE) as served:
        assert ask(tmp_path, served.url, "a", tries=2).tokens == of(2)
        found = ask(tmp_path, served.url, "a", tries=1)
    assert found.tokens == of(3) and dict(found.counts.tokens) == of(1)


def test_equal_questions_under_way_at_once_are_asked_once(tmp_path: Path) -> None:
    def slow(before: int, question: str) -> Reply:
        return TOO_LONG if question == "z" else Reply(text=good(0.5).text, sleep=0.2)

    with serve(slow) as served:
        found = ask(tmp_path, served.url, "a", "s", "s", "ss", "z", "z")
    assert served.asked == {"a": 1, "s": 1, "z": 1}
    assert [isinstance(result, str) for result in found.results] == [False, False, False, False, True, True]


def test_questions_refused_for_their_own_sake_do_not_keep_the_others_from_being_asked(tmp_path: Path) -> None:
    with serve(lambda before, question: TOO_LONG if question in "wxyz" else good(0.5)) as served:
        found = ask(tmp_path, served.url, *"wxyzab")
    assert [isinstance(result, str) for result in found.results] == [True] * 4 + [False] * 2
    assert found.results[0] == "status 400: context too long"


def test_they_do_not_count_among_the_first_three_that_fail(tmp_path: Path) -> None:
    with serve(lambda before, question: TOO_LONG if question == "z" else Reply(500)) as served:
        found = ask(tmp_path, served.url, *"zabcd")
    assert list(served.asked) == ["z", "a", "b", "c"]
    assert found.results[4] == "not asked, because the first 4 all failed"
