"""The chat judge against a scripted server: preferences, both orders, faults, costs, the cache, and a kill.

Run: python -m pytest tests/gpo/evaluation/test_openai_judge.py
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from gpo.evaluation.chat_client import FIRST_PAUSE_SECONDS
from tests.gpo.command_line import REPOSITORY, Outcome, gpo
from tests.gpo.evaluation.scripted_server import Reply, Script, answered, good, serve
from tests.gpo.evaluation.small_evaluation import ALPACA_EVAL_SHA256, answers, read, write_answers

PAIRS = 12
KEY = "sk-not-a-real-key-8861"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("start", "first"):
        write_answers(tmp_path, name, answers(name, PAIRS))
    return tmp_path


def words_of(place: Path, url: str, *more: str | Path) -> list[str]:
    files = ("--outputs", place / "first.json", "--baseline", place / "start.json")
    judge = ("--judge", "openai:scripted", "--base-url", url, "--output", place / "out")
    return [str(word) for word in ("eval", *files, *judge, "--tries", "3", "--timeout", "30", *more)]


def evaluate(place: Path, url: str, *more: str | Path) -> Outcome:
    return gpo(place, *words_of(place, url, *more), OPENAI_API_KEY=KEY)


def metrics(place: Path) -> Any:
    return read(place / "out" / "metrics.json")


def likes(place: Path) -> Script:
    """A judge with a chance of its own for each pair, and a liking for whatever stands first."""
    rows = {row["instruction"]: (number, row["output"]) for number, row in enumerate(answers("first", PAIRS))}

    def script(_before: int, question: str) -> Reply:
        instruction, first, _second = re.findall(r'"""(.*?)"""', question)
        number, evaluated = rows[instruction]
        chance = chance_of(number)
        return good(0.05 + (chance if first == evaluated else 1 - chance))

    return script


def chance_of(number: int) -> float:
    return (number + 1) / (PAIRS + 2)


def test_the_preference_is_the_mean_of_both_orders(place: Path) -> None:
    with serve(likes(place)) as served:
        found = evaluate(place, served.url, "--price-prompt", "10", "--price-completion", "30")
    assert found.status == 0, found
    assert f"{PAIRS} judged of {PAIRS} asked" in found.printed
    for number, row in enumerate(read(place / "out" / "annotations.json")):
        # What stands first is liked by 0.05 more in either order, and that cancels.
        assert row["preference"] - 1 == pytest.approx(chance_of(number), abs=1e-9)
        assert len(row["raw_completion"]) == 2 and row["price_per_example"] == pytest.approx((200 * 10 + 2 * 30) / 1e6)
    made = metrics(place)["judge"]
    assert made["tokens"] == {"prompt": 200 * PAIRS, "completion": 2 * PAIRS}
    assert made["price_usd"] == pytest.approx(PAIRS * (200 * 10 + 2 * 30) / 1e6)
    assert made["template"] == {"name": "alpaca_eval_clf", "sha256": ALPACA_EVAL_SHA256}
    assert made["models_that_answered"] == ["scripted-1"] and made["faults"] == {}
    assert made["requests_sent"] == made["questions"] == 2 * PAIRS
    assert served.bodies[0]["logprobs"] is True and served.bodies[0]["top_logprobs"] == 5
    assert served.bodies[0]["max_tokens"] == 1 and served.bodies[0]["model"] == "scripted"


def test_the_judge_is_told_the_whole_conversation(place: Path) -> None:
    turns = [("user", "A line."), ("assistant", "Rain."), ("user", "Shorter.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for name in ("start", "first"):
        rows = [{**row, "messages": messages} for row in answers(name, 1)]
        write_answers(place, name, rows)
    with serve(lambda before, question: good(0.5)) as served:
        assert evaluate(place, served.url).status == 0
    assert len(served.asked) == 2
    assert all('"""[user]\nA line.\n\n[assistant]\nRain.\n\n[user]\nShorter."""' in asked for asked in served.asked)


def test_the_same_evaluation_again_asks_nobody(place: Path) -> None:
    with serve(likes(place)) as served:
        assert evaluate(place, served.url).status == 0
        first = metrics(place)
        assert evaluate(place, f"{served.url}/").status == 0, "a slash at the end makes no other judge"
        assert sum(served.asked.values()) == 2 * PAIRS
        again = metrics(place)
        assert again["win_rate"] == first["win_rate"] and again["judge"]["tokens"] == first["judge"]["tokens"]
        assert again["judge"]["tokens_of_this_start"] == {"prompt": 0, "completion": 0}
        assert again["judge"]["questions_known_from_the_cache"] == 2 * PAIRS and again["judge"]["requests_sent"] == 0
        other = evaluate(place, served.url, "--top-logprobs", "7")
        assert other.status == 0 and sum(served.asked.values()) == 4 * PAIRS, "another question is asked anew"


RETRY_AFTER_SECONDS = 2
"""Longer than the pause that the client makes by itself."""
FAULTS: dict[str, Reply] = {
    "time-out": Reply(sleep=6),
    "status 429": Reply(429, '{"error": {"message": "slow down"}}', {"Retry-After": str(RETRY_AFTER_SECONDS)}),
    "status 500": Reply(500, "oh no"),
    "status 503": Reply(503, "{}"),
    "broken JSON": Reply(text='{"choices": [{"logprobs'),
    "unusable answer": good(0.5, logprobs=None),
    "no connection": Reply(hang_up=True),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_passes_is_tried_again_and_counted(place: Path, kind: str) -> None:
    script = likes(place)
    failed: list[str] = []
    arrived: defaultdict[str, list[float]] = defaultdict(list)

    def failing(before: int, question: str) -> Reply:
        arrived[question].append(time.monotonic())
        # Two questions fail once each.
        if before == 0 and len(failed) < 2:
            failed.append(question)
            return FAULTS[kind]
        return script(before, question)

    with serve(failing) as served:
        found = evaluate(place, served.url, *(("--timeout", "3") if kind == "time-out" else ()))
    assert found.status == 0, found
    assert metrics(place)["judge"]["faults"] == {kind: 2}
    assert sorted(served.asked.values()) == [1] * (2 * PAIRS - 2) + [2, 2]
    waited = [arrived[question][1] - arrived[question][0] for question in failed]
    assert min(waited) >= (RETRY_AFTER_SECONDS if kind == "status 429" else FIRST_PAUSE_SECONDS)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (good(0.5, logprobs=None), "the answer has no log-probabilities"),
        (answered(math.nan, -1.0), "a log-probability in the answer is not a number"),
        (answered(-math.inf, -math.inf), "neither 'm' nor 'M' is among the 1 likeliest first tokens"),
        (Reply(text="{"), "the answer is not JSON"),
        (Reply(500, "oh no"), "status 500: "),
        (Reply(400, '{"error": {"message": "context too long"}}'), "status 400: context too long"),
    ],
)
def test_a_row_that_keeps_failing_is_named_and_there_is_no_headline_number(
    place: Path, reply: Reply, told: str
) -> None:
    script, fifth = likes(place), answers("first", PAIRS)[4]["instruction"]
    mended = False

    def failing(before: int, question: str) -> Reply:
        return reply if fifth in question and not mended else script(before, question)

    with serve(failing) as served:
        found = evaluate(place, served.url)
        assert found.status == 1, found
        assert (
            f"1 of {PAIRS} judgements failed (row 5: {told}" in found.said and "so there is no win rate" in found.said
        )
        assert found.printed == "" and not (place / "out" / "leaderboard.csv").exists()
        assert metrics(place)["win_rate"] is None and metrics(place)["failed_rows"] == [5]
        row = read(place / "out" / "annotations.json")[4]
        assert row["preference"] is None and told in row["failure"]
        asked = served.asked.copy()
        mended = True
        assert evaluate(place, served.url).status == 0
    # Only what failed: the pair's first order, and its second one, which was not asked after the first.
    made = metrics(place)["judge"]
    assert (made["questions_known_from_the_cache"], made["requests_sent"]) == (2 * PAIRS - 2, 2)
    again = served.asked - asked
    assert sorted(again.values()) == [1, 1] and all(fifth in question for question in again)


def test_when_the_first_ones_all_fail_the_others_are_not_asked(place: Path) -> None:
    with serve(lambda before, question: good(0.5, logprobs=None)) as served:
        found = evaluate(place, served.url)
    assert found.status == 1 and f"{PAIRS} of {PAIRS} judgements failed" in found.said
    assert len(served.asked) == 3 and set(served.asked.values()) == {3}
    failures = [row["failure"] for row in read(place / "out" / "annotations.json")]
    assert failures[3:] == ["not asked, because the first 3 all failed"] * (PAIRS - 3)


@pytest.mark.parametrize(("status", "told"), [(401, "expected a valid key in OPENAI_API_KEY"), (404, "not found")])
def test_a_refused_key_or_an_unknown_model_is_status_2_at_once(place: Path, status: int, told: str) -> None:
    body = json.dumps({"error": {"message": f"no such thing, {KEY}"}})
    with serve(lambda before, question: Reply(status, body)) as served:
        found = evaluate(place, served.url)
    assert found.status == 2 and told in found.said, found
    assert KEY not in found.said and sum(served.asked.values()) == 1


def test_no_server_is_named(place: Path) -> None:
    found = evaluate(place, "http://127.0.0.1:9/v1", "--tries", "1")
    assert found.status == 1 and "no connection to http://127.0.0.1:9/v1" in found.said, found


def test_questions_go_out_side_by_side_up_to_the_limit(place: Path) -> None:
    script = likes(place)

    def slow(before: int, question: str) -> Reply:
        time.sleep(0.1)
        return script(before, question)

    with serve(slow) as served:
        assert evaluate(place, served.url, "--concurrency", "4").status == 0
    assert 2 <= served.largest_at_once <= 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_evaluation_goes_on_without_judging_anything_twice(place: Path, number: signal.Signals) -> None:
    script = likes(place)

    def slow(before: int, question: str) -> Reply:
        time.sleep(0.15)
        return script(before, question)

    with serve(slow) as served:
        command = [sys.executable, "-m", "gpo", *words_of(place, served.url, "--concurrency", "2", "--timeout", "20")]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": KEY}
        process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
        cache, end = place / "out" / "cache" / "judgements.jsonl", time.monotonic() + 60
        while not (cache.exists() and cache.read_bytes().count(b"\n") >= 6) and time.monotonic() < end:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
        assert "Traceback" not in said
        kept = len(cache.read_text().splitlines())
        assert 6 <= kept < 2 * PAIRS
        found = gpo(place, *words_of(place, served.url, "--concurrency", "2", "--timeout", "20"), OPENAI_API_KEY=KEY)
        assert found.status == 0, found
    assert metrics(place)["judge"]["questions_known_from_the_cache"] == kept
    assert len(cache.read_text().splitlines()) == 2 * PAIRS == len(served.asked)
    # Only what was under way at the kill may have been asked a second time: its answer never arrived.
    assert sum(served.asked.values()) - 2 * PAIRS <= 2


def test_the_key_is_written_nowhere(place: Path) -> None:
    with serve(likes(place)) as served:
        assert evaluate(place, served.url.replace("http://", "http://me:secret@") + "?code=secret").status == 0
    assert set(served.paths) == {"/v1/chat/completions?code=secret"}
    for path in (place / "out").rglob("*"):
        if path.is_file():
            assert KEY not in path.read_text() and "secret" not in path.read_text()


def test_mistakes_are_status_2_and_nobody_is_asked(place: Path) -> None:
    def refused(found: Outcome, told: str) -> None:
        assert found.status == 2 and told in found.said, found

    with serve(likes(place)) as served:
        refused(evaluate(place, "localhost:8000"), "--base-url localhost:8000: expected an address such as http://")
        refused(evaluate(place, served.url, "--timeout", "0"), "--timeout 0: expected seconds above 0")
        refused(evaluate(place, served.url, "--timeout", "nan"), "--timeout nan: expected seconds above 0")
        refused(evaluate(place, served.url, "--template", place / "none.txt"), "none.txt: cannot be read")
        (place / "bad.txt").write_text("{instruction} {output_1}")
        refused(evaluate(place, served.url, "--template", place / "bad.txt"), "no {output_2}; expected {instruction}")
        assert not served.asked
    files = ("--outputs", place / "first.json", "--baseline", place / "start.json", "--output", place / "out")
    found = gpo(place, "eval", *files, "--judge", "openai:gpt-x", OPENAI_API_KEY="", OPENAI_BASE_URL="")
    refused(found, "OPENAI_API_KEY is not set; expected a key in the environment, or --base-url")
