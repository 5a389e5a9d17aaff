"""A chat model at an OpenAI-compatible URL: one question at a time, with tries, and faults that say what they are.

Uses the `openai` client for the connection, and its own loop of tries, because an answer without log-probabilities or
with broken JSON is worth another try as much as a 429 is, and all of them are counted.
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from gpo.errors import UserError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
PERMANENT = {400, 404, 413, 422}
"""Answers that the same question would get again."""
REFUSED = {401, 403}
UNUSABLE = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer raises where it is not what was asked for."""
SIDES = ("prompt", "completion")
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """Where and how a chat model is asked."""

    model: str
    base_url: str | None = None
    """None: OPENAI_BASE_URL, or OpenAI's own."""
    timeout_seconds: float = 120.0
    """Of one try, from the request to the last byte of its answer."""
    tries: int = 5
    concurrency: int = 8

    @property
    def url(self) -> str:
        """Where the requests go."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    @property
    def shown_url(self) -> str:
        """The server's name in records and messages: no user, password or query, which may be secrets, no last slash.

        By hand and not by urlsplit, because it also shows what is no URL.
        """
        scheme, mark, rest = re.split(r"[?#]", self.url, maxsplit=1)[0].rstrip("/").rpartition("://")
        place, slash, path = rest.partition("/")
        return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}"


def check_chat_settings(settings: ChatSettings) -> None:
    """Raises UserError for settings that no server could make good."""
    if not 0 < settings.timeout_seconds < float("inf"):
        raise UserError(f"--timeout {settings.timeout_seconds:g}: expected seconds above 0")
    if not _is_address(settings.url):
        raise UserError(f"--base-url {settings.shown_url}: expected an address such as http://127.0.0.1:8000/v1")
    if settings.url == OPENAI_URL and not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            "OPENAI_API_KEY is not set; expected a key in the environment, or --base-url for a server of your own"
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # A port that is no number, or half a bracket.
        return False


def tokens_of(answer: Any) -> dict[str, int]:
    """What the server says that an answer took; 0 where it does not say."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    counted = {side: usage.get(f"{side}_tokens") if isinstance(usage, Mapping) else 0 for side in SIDES}
    return {side: count if isinstance(count, int) else 0 for side, count in counted.items()}


class ChatFault(Exception):
    """A question that got no usable answer; the message is the reason."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent
        """It lies in the question: asked again it would get the same."""


@dataclass(slots=True)
class ChatCounts:
    """What it took."""

    requests: int = 0
    tokens: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SIDES, 0)))
    """Of every answer, also of those without use: they are paid for alike."""
    faults: Counter[str] = field(default_factory=Counter)
    """By kind, also those that a later try mended."""


class ChatClient:
    """Asks one model; use it inside `async with`."""

    def __init__(self, settings: ChatSettings) -> None:
        from openai import AsyncOpenAI

        self._settings = settings
        # A server of one's own needs no key, but the client insists on one.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        parts = urlsplit(settings.url)
        self._client = AsyncOpenAI(
            api_key=key,
            # The client adds its path at the end, where a query would swallow it.
            base_url=urlunsplit(parts._replace(query="", fragment="")),
            default_query=dict(parse_qsl(parts.query)),
            timeout=settings.timeout_seconds,
            max_retries=0,
        )
        self.counts = ChatCounts()

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: dict[str, Any], usable: Any) -> Any:
        """`usable(answer)` of the first good answer; raises ChatFault after the last try, UserError when refused.

        `usable` takes the decoded JSON object and raises one of UNUSABLE where it is not what was asked for.
        """
        reason = ""
        for number in range(self._settings.tries):
            self.counts.requests += 1
            wait = min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
            try:
                answer = await self._answer(body)
                self.counts.tokens.update(tokens_of(answer))
                return usable(answer)
            except _Fault as fault:
                reason = fault.reason
                self.counts.faults[fault.kind] += 1
                if fault.permanent:
                    raise ChatFault(reason, permanent=True) from None
                wait = max(wait, min(fault.retry_after, 2 * LONGEST_PAUSE_SECONDS))
            except UNUSABLE as error:
                reason = str(error) or type(error).__name__
                self.counts.faults["unusable answer"] += 1
            if number + 1 < self._settings.tries:
                await asyncio.sleep(wait)
        raise ChatFault(f"{reason} ({self._settings.tries} tries)")

    async def _answer(self, body: dict[str, Any]) -> Any:
        import openai

        try:
            # The client's own limit is one of each read: a server that sends a byte now and then never reaches it.
            async with asyncio.timeout(self._settings.timeout_seconds):
                raw = await self._client.chat.completions.with_raw_response.create(model=self._settings.model, **body)
        except (TimeoutError, openai.APITimeoutError):
            raise _Fault("time-out", f"no answer within {self._settings.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _Fault("no connection", f"no connection to {self._settings.shown_url} ({cause})") from None
        except openai.APIStatusError as error:
            raise self._status_fault(error) from None
        try:
            return json.loads(raw.http_response.text)
        except ValueError as error:
            raise _Fault("broken JSON", f"the answer is not JSON ({error})") from None

    def _status_fault(self, error: Any) -> Exception:
        status = int(error.status_code)
        where = f"{self._settings.shown_url} with model {self._settings.model!r}"
        if status in REFUSED:
            return UserError(f"{where}: refused with status {status}; expected a valid key in OPENAI_API_KEY")
        if status == 404:
            return UserError(f"{where}: not found (404); check the model's name and that --base-url ends in /v1")
        told = f"status {status}: {_told(error)}"
        try:
            pause = float(error.response.headers.get("retry-after", 0))
        except ValueError:  # It may be a date.
            pause = 0.0
        return _Fault(f"status {status}", told, permanent=status in PERMANENT, retry_after=pause)


class _Fault(Exception):
    """One try that failed."""

    def __init__(self, kind: str, reason: str, *, permanent: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.permanent, self.retry_after = kind, reason, permanent, retry_after


def _told(error: Any) -> str:
    """The server's own words, short."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)[:200].replace("\n", " ")
