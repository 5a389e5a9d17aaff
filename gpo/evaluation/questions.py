"""Many questions to a chat model: side by side, each answer kept before it counts, none asked twice.

A group is what is judged together (the two orders of a pair, or one answer to grade); it fails when one of its
questions does. When the first groups all fail, the others are not asked: a server that is wrong for three is wrong.
A question that the server refuses for its own sake (too long, say) is no sign of that, and does not count.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpo.evaluation.chat_client import UNUSABLE, ChatClient, ChatCounts, ChatFault, ChatSettings, tokens_of
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
    """Of this start."""
    tokens: dict[str, int]
    """Of all answers to these questions, by this start and earlier ones, usable or not."""

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
        self._alone: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._faults: dict[str, ChatFault] = {}

    async def all(self, groups: list[Group], unit: str) -> Asked:
        keys = [question.key for group in groups for question in group]
        known = sum(self._cache.get(key) is not None for key in keys)
        progress = Progress(f"judged by {self._chat.model}", len(groups), unit)
        async with ChatClient(self._chat) as client:
            results = await self._first(client, groups)
            done = len(results)

            async def one(group: Group) -> Answers | str:
                nonlocal done
                try:
                    return await self._group(client, group)
                except ChatFault as fault:
                    return str(fault)
                finally:
                    done += 1
                    progress.update(done)

            results += await asyncio.gather(*map(one, groups[len(results) :]))
        return Asked(results, known, client.counts, self._cache.tokens(keys))

    async def _first(self, client: ChatClient, groups: list[Group]) -> list[Answers | str]:
        """One after the other up to the first that is answered; all of them when the server is wrong."""
        results: list[Answers | str] = []
        failed = 0
        for group in groups:
            try:
                return [*results, await self._group(client, group)]
            except ChatFault as fault:
                results.append(str(fault))
                failed += not fault.permanent
            if failed == GIVE_UP_AFTER:
                reason = f"not asked, because the first {len(results)} all failed"
                return results + [reason] * (len(groups) - len(results))
        return results

    async def _group(self, client: ChatClient, group: Group) -> Answers:
        return [await self._answer(client, question) for question in group]

    async def _answer(self, client: ChatClient, question: Question) -> dict[str, Any]:
        # Of equal questions one is asked, and the others wait for what it gets.
        async with self._alone[question.key]:
            found = self._cache.get(question.key)
            if found is not None:
                return found
            if question.key in self._faults:
                raise self._faults[question.key]
            async with self._room:
                return await self._ask(client, question)

    async def _ask(self, client: ChatClient, question: Question) -> dict[str, Any]:
        def usable(answer: Any) -> dict[str, Any]:
            try:
                return self._read(answer)
            except UNUSABLE:
                self._cache.put_unusable(question.key, tokens_of(answer))
                raise

        started = time.monotonic()
        try:
            answer: dict[str, Any] = await client.ask(question.body, usable)
        except ChatFault as fault:
            self._faults[question.key] = fault
            raise
        answer["seconds"] = round(time.monotonic() - started, 3)
        answer["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._cache.put(question.key, answer)
        return answer


def usage_of(answer: Any) -> dict[str, Any]:
    """Token counts and the model's own name, as every kept answer has them."""
    return {"tokens": tokens_of(answer), "model": str(answer.get("model", ""))}
