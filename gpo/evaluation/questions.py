"""Many questions to a chat model: side by side, each answer kept before it counts, none asked twice.

A group is what is judged together (the two orders of a pair, or one answer to grade); it fails when one of its
questions does. When the first groups all fail, the others are not asked: a server that is wrong for three is wrong.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpo.evaluation.chat_client import ChatClient, ChatCounts, ChatFault, ChatSettings
from gpo.evaluation.judgement_cache import JudgementCache
from gpo.logs import Progress

GIVE_UP_AFTER = 3
"""Groups."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the hash of all that decides the answer."""

    key: str
    body: dict[str, Any]
    """Of the chat request, without the model."""


Group = list[Question]
Answers = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of it."""

    results: list[Answers | str]
    """Of each group: its answers, or the reason why there are none."""
    known: int
    """Questions that an earlier start had an answer to."""
    counts: ChatCounts

    def tokens(self) -> dict[str, int]:
        """Of all answers, also those from the cache."""
        answers = [answer for result in self.results if not isinstance(result, str) for answer in result]
        return {side: sum(answer["tokens"][side] for answer in answers) for side in ("prompt", "completion")}

    def models(self) -> list[str]:
        """The names under which the server answered."""
        return sorted({answer["model"] for result in self.results if not isinstance(result, str) for answer in result})


def ask_all(
    chat: ChatSettings, groups: list[Group], read: Callable[[Any], dict[str, Any]], cache_file: Path, unit: str
) -> Asked:
    """Ask every group; `read` takes what is kept from a decoded answer and raises ValueError for one without use.

    Raises UserError when the server refuses key or model, or another process holds the cache.
    """
    cache = JudgementCache(cache_file)
    try:
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(_pass_over_interrupts)
            return runner.run(_Asking(chat, cache, read).all(groups, unit))
    finally:
        cache.close()


def _pass_over_interrupts(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An interrupt that hits a task is raised by the runner; asyncio would tell of it again, with a traceback."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


class _Asking:
    def __init__(self, chat: ChatSettings, cache: JudgementCache, read: Callable[[Any], dict[str, Any]]) -> None:
        self._chat = chat
        self._cache = cache
        self._read = read
        self._room = asyncio.Semaphore(chat.concurrency)

    async def all(self, groups: list[Group], unit: str) -> Asked:
        known = sum(self._cache.get(question.key) is not None for group in groups for question in group)
        progress = Progress(f"judged by {self._chat.model}", len(groups), unit)
        async with ChatClient(self._chat) as client:
            results: list[Answers | str] = []
            for group in groups[:GIVE_UP_AFTER]:
                results.append(await self._group(client, group))
                if not isinstance(results[-1], str):
                    break
            else:
                reason = f"not asked, because the first {len(results)} all failed"
                results += [reason] * (len(groups) - len(results))
                return Asked(results, known, client.counts)
            done = len(results)

            async def one(group: Group) -> Answers | str:
                nonlocal done
                result = await self._group(client, group)
                done += 1
                progress.update(done)
                return result

            results += await asyncio.gather(*map(one, groups[done:]))
            return Asked(results, known, client.counts)

    async def _group(self, client: ChatClient, group: Group) -> Answers | str:
        try:
            return [await self._answer(client, question) for question in group]
        except ChatFault as fault:
            return str(fault)

    async def _answer(self, client: ChatClient, question: Question) -> dict[str, Any]:
        found = self._cache.get(question.key)
        if found is not None:
            return found
        async with self._room:
            started = time.monotonic()
            answer: dict[str, Any] = await client.ask(question.body, self._read)
        answer["seconds"] = round(time.monotonic() - started, 3)
        answer["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._cache.put(question.key, answer)
        return answer


def usage_of(answer: Any) -> dict[str, Any]:
    """Token counts and the model's own name, as every kept answer has them."""
    usage = answer.get("usage") or {}
    tokens = {side: int(usage.get(f"{side}_tokens") or 0) for side in ("prompt", "completion")}
    return {"tokens": tokens, "model": str(answer.get("model", ""))}
