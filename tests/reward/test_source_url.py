"""A judge at a URL fills tables like any other source; what it does wrong is told with its address.

Run: python -m pytest tests/reward/test_source_url.py
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from reward.errors import RewardInputError
from reward.source import Answer, AnswerGroup, FunctionSource, open_source
from reward.source_check import check_source
from reward.source_url import TOKEN_VARIABLE, UrlSource

MESSAGES = [{"role": "user", "content": "A word?"}]
TEXTS = ["bread", "a", "rivers and seas"]
BREAKS_OFF = 299
"""Status of a reply that is shorter than it says."""


def prefer(messages: Any, a: Answer, b: Answer) -> float:
    return (len(a.text) - len(b.text)) / 100


@contextmanager
def judge(reply: Callable[[Any, Any], tuple[int, Any]]) -> Iterator[str]:
    """A server on loopback; `reply(headers, comparisons)` gives status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = reply(self.headers, body["comparisons"])
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) + 9 * (status == BREAKS_OFF)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/judge"
    finally:
        server.shutdown()
        server.server_close()


def by_length(headers: Any, comparisons: Any) -> tuple[int, Any]:
    return 200, {"preferences": [(len(c["a"]["text"]) - len(c["b"]["text"])) / 100 for c in comparisons]}


def group(texts: list[str]) -> AnswerGroup:
    return AnswerGroup(MESSAGES, [Answer(text, True) for text in texts])


def test_a_judge_gives_the_tables_of_the_same_function_at_home() -> None:
    home = FunctionSource(prefer, "home")
    with judge(by_length) as url:
        away = open_source(f"url:{url}", max_length=1, batch_tokens=1)
        assert away.tau == home.tau
        for source in (away, home):
            own, other = source.read([group(TEXTS), group(["xyz", "x" * 40])])
            tables = (source.compare(own), source.compare(own, other))
            if source is away:
                found = tables
    assert all(torch.equal(a, b) for a, b in zip(found, tables, strict=True))
    assert torch.equal(found[0], -found[0].T)


def test_a_taste_for_whatever_comes_first_does_not_count_between_two_groups() -> None:
    def biased(headers: Any, comparisons: Any) -> tuple[int, Any]:
        _, fair = by_length(headers, comparisons)
        return 200, {"preferences": [score + 0.3 for score in fair["preferences"]]}

    with judge(biased) as url:
        source = UrlSource(url, 0.1)
        own, other = source.read([group(TEXTS), group(["xyz", "x" * 40])])
        found = source.compare(own, other)
    torch.testing.assert_close(found[0], torch.tensor([0.02, -0.35]))


def test_a_token_is_sent_only_where_the_environment_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def reply(headers: Any, comparisons: Any) -> tuple[int, Any]:
        seen.append(headers.get("Authorization"))
        return by_length(headers, comparisons)

    with judge(reply) as url:
        source = UrlSource(url, 0.1)
        source.compare(source.read([group(TEXTS)])[0])
        monkeypatch.setenv(TOKEN_VARIABLE, "open sesame")
        source.compare(source.read([group(TEXTS)])[0])
    assert seen == [None, "Bearer open sesame"]


def test_what_may_pass_is_tried_again_and_what_is_refused_is_not() -> None:
    statuses = [503, 429, BREAKS_OFF, 200]
    asked = []

    def reply(headers: Any, comparisons: Any) -> tuple[int, Any]:
        asked.append(len(comparisons))
        status = statuses[len(asked) - 1]
        return status, by_length(headers, comparisons)[1]

    with judge(reply) as url:
        source = UrlSource(url, 0.1, pause=0.0)
        assert source.compare(source.read([group(TEXTS)])[0]).shape == (3, 3)
        assert asked == [3, 3, 3, 3]
        statuses[:] = [200, 200, 200, 200, 403, 200]
        with pytest.raises(RewardInputError, match="status 403"):
            source.compare(source.read([group(TEXTS)])[0])
        assert len(asked) == 5


@pytest.mark.parametrize(
    "value",
    [b"<html>", {"scores": [0]}, {"preferences": [0.0]}, {"preferences": [0, 2, 0]}, {"preferences": [0, True, 0]}],
)
def test_a_reply_of_another_form_is_refused_with_the_address(value: Any) -> None:
    with judge(lambda headers, comparisons: (200, value)) as url:
        source = UrlSource(url, 0.1, pause=0.0)
        with pytest.raises(RewardInputError, match=url):
            source.compare(source.read([group(TEXTS)])[0])


def test_nobody_there_and_nobody_who_answers_end_at_a_deadline() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        source = UrlSource(address + "judge", 0.1, seconds=0.1, pause=0.0)
        with pytest.raises(RewardInputError, match="does not judge"):
            source.compare(source.read([group(TEXTS)])[0])
    with pytest.raises(RewardInputError, match="does not judge"):
        source.compare(source.read([group(TEXTS)])[0])


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hidden@judge.example/p",
        "https://hidden@judge.example",
        "http://judge.example/p?token=hidden",
        "http://judge.example?hidden",
        "me:hidden@judge.example/p",
        "ftp://me:hidden@judge.example/p?hidden",
    ],
)
def test_an_address_with_secrets_in_it_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(RewardInputError, match="judge.example has a user, .* into GPO_JUDGE_TOKEN") as refusal:
        check_source(f"url:{address}")
    assert "hidden" not in str(refusal.value)
    check_source("url:http://judge.example/@me")


@pytest.mark.parametrize("spec", ["url:", "url:ftp://x/y", "url:http://", "url:localhost:80"])
def test_an_address_that_is_none_is_refused_before_anything_starts(spec: str) -> None:
    with pytest.raises(RewardInputError):
        check_source(spec)
