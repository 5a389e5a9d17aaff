"""The chat client alone: its limit of time, and what an address shows.

Run: python -m pytest tests/gpo/evaluation/test_chat_client.py
"""

import asyncio
import time
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.evaluation.chat_client import ChatClient, ChatFault, ChatSettings, check_chat_settings, tokens_of
from tests.gpo.evaluation.scripted_server import Reply, good, serve


async def ask(settings: ChatSettings) -> Any:
    async with ChatClient(settings) as client:
        return await client.ask({"messages": [{"role": "user", "content": "a"}]}, lambda answer: answer)


def test_an_answer_that_comes_byte_by_byte_is_timed_as_a_whole() -> None:
    with serve(lambda before, question: Reply(text=good(0.5).text, dribble=0.05)) as served:
        started = time.monotonic()
        with pytest.raises(ChatFault, match="no answer within 0.5 s"):
            asyncio.run(ask(ChatSettings(model="m", base_url=served.url, timeout_seconds=0.5, tries=1)))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1//", "http://127.0.0.1:8000/v1"),
        ("https://me:secret@judge.example/v1/?key=secret#secret", "https://judge.example/v1"),
        ("me:secret@judge.example/v1", "judge.example/v1"),
    ],
)
def test_an_address_is_shown_in_one_form_and_without_secrets(url: str, shown: str) -> None:
    assert ChatSettings(model="m", base_url=url).shown_url == shown


@pytest.mark.parametrize("url", ["me:secret@judge.example", "http://:80/v1", "http://me:secret@judge:eighty/v1?secret"])
def test_what_is_no_address_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UserError, match="expected an address such as") as caught:
        check_chat_settings(ChatSettings(model="m", base_url=url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [[], {}, {"usage": None}, {"usage": [1]}, {"usage": {"prompt_tokens": "many"}}])
def test_an_answer_that_does_not_say_what_it_took_counts_nothing(answer: Any) -> None:
    assert tokens_of(answer) == {"prompt": 0, "completion": 0}
