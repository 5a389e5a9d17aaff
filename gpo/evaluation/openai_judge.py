"""A chat model as judge of pairs, as AlpacaEval 2 does it: the weighted preference of the first token, in both orders.

The model is asked for one token, the name of the better answer. The preference is the probability of the one name among
the two, from the first token's log-probabilities. Each pair is asked twice, with the answers exchanged, and the two
preferences are averaged, so that a liking for the first place cancels.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpo.evaluation.chat_client import ChatClient, ChatFault, ChatSettings
from gpo.evaluation.judge_template import JudgeTemplate
from gpo.evaluation.judgement_cache import JudgementCache, question_key
from gpo.evaluation.judges import Verdict
from gpo.evaluation.outputs import OutputFile
from gpo.logs import Progress

FIRST, SECOND = "m", "M"
"""The template's names of the first and the second answer."""
GIVE_UP_AFTER = 3
"""Pairs; when the first ones all fail, the others are not asked."""

Pair = tuple[str, str, str]
"""Instruction, the baseline's answer, the evaluated one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars a million tokens; None: unknown."""

    prompt: float | None = None
    completion: float | None = None

    def of(self, tokens: Mapping[str, int]) -> float | None:
        """Of a question's tokens."""
        if self.prompt is None or self.completion is None:
            return None
        return (tokens["prompt"] * self.prompt + tokens["completion"] * self.completion) / 1e6


class OpenAIJudge:
    """Judges pairs of answers; every judgement is kept in the cache before it counts."""

    def __init__(
        self, chat: ChatSettings, template: JudgeTemplate, prices: Prices, cache: Path, top_logprobs: int = 5
    ) -> None:
        self._chat = chat
        self._template = template
        self._prices = prices
        self._cache = cache / "judgements.jsonl"
        self._body = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": top_logprobs}
        self._record: dict[str, Any] = {}
        self.annotator = f"openai:{chat.model}:{template.name}-{template.sha256[:8]}"

    def judge(self, baseline: OutputFile, outputs: OutputFile, pairs: list[tuple[int, int]]) -> list[Verdict]:
        """A verdict a pair; raises UserError when the server refuses key or model."""
        asked = [
            (baseline.rows[one].instruction, baseline.rows[one].output, outputs.rows[other].output)
            for one, other in pairs
        ]
        cache = JudgementCache(self._cache)
        try:
            return asyncio.run(self._judge(asked, cache))
        finally:
            cache.close()

    async def _judge(self, pairs: list[Pair], cache: JudgementCache) -> list[Verdict]:
        known = sum(cache.get(self._key(*question)) is not None for pair in pairs for question in _orders(pair))
        async with ChatClient(self._chat) as client:
            room = asyncio.Semaphore(self._chat.concurrency)
            progress = Progress(f"judged by {self._chat.model}", len(pairs), "pairs")
            verdicts: list[Verdict] = []
            for pair in pairs[:GIVE_UP_AFTER]:
                verdicts.append(await self._verdict(client, cache, room, pair))
                if verdicts[-1].preference is not None:
                    break
            else:
                return self._finish(client, known, verdicts + _given_up(verdicts, len(pairs)))
            waiting = pairs[len(verdicts) :]
            done = len(verdicts)

            async def one(pair: Pair) -> Verdict:
                nonlocal done
                verdict = await self._verdict(client, cache, room, pair)
                done += 1
                progress.update(done)
                return verdict

            return self._finish(client, known, verdicts + await asyncio.gather(*map(one, waiting)))

    def _finish(self, client: ChatClient, known: int, verdicts: list[Verdict]) -> list[Verdict]:
        answers = [answer for verdict in verdicts for answer in (verdict.raw or [])]
        tokens = {side: sum(answer["tokens"][side] for answer in answers) for side in ("prompt", "completion")}
        self._record = {
            "kind": "openai",
            "model": self._chat.model,
            "models_that_answered": sorted({answer["model"] for answer in answers}),
            "base_url": self._chat.shown_url,
            "template": {"name": self._template.name, "sha256": self._template.sha256},
            "request": self._body,
            "orders": 2,
            "tokens": tokens,
            "prices_usd_per_million_tokens": asdict(self._prices),
            "price_usd": self._prices.of(tokens),
            "questions": 2 * len(verdicts),
            "questions_known_from_the_cache": known,
            "requests_sent": client.counts.requests,
            "faults": dict(client.counts.faults),
        }
        return verdicts

    def record(self) -> dict[str, Any]:
        """Of the last judging."""
        return self._record

    async def _verdict(self, client: ChatClient, cache: JudgementCache, room: asyncio.Semaphore, pair: Pair) -> Verdict:
        """Both orders; a failure of either is a failure of the pair."""
        answers = []
        for instruction, first, second in _orders(pair):
            try:
                async with room:
                    answers.append(await self._answer(client, cache, instruction, first, second))
            except ChatFault as fault:
                return Verdict(preference=None, failure=str(fault))
        # In the first order the evaluated answer stands second, in the other first.
        preference = (1 - answers[0]["first_preferred"] + answers[1]["first_preferred"]) / 2
        prices = [self._prices.of(answer["tokens"]) for answer in answers]
        return Verdict(
            preference=preference,
            raw=answers,
            seconds=sum(answer["seconds"] for answer in answers),
            price=None if None in prices else sum(price for price in prices if price is not None),
        )

    async def _answer(
        self, client: ChatClient, cache: JudgementCache, instruction: str, first: str, second: str
    ) -> dict[str, Any]:
        key = self._key(instruction, first, second)
        found = cache.get(key)
        if found is not None:
            return found
        started = time.monotonic()
        messages = self._template.messages(instruction, first, second)
        answer: dict[str, Any] = await client.ask({"messages": messages, **self._body}, read_answer)
        answer["seconds"] = round(time.monotonic() - started, 3)
        answer["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        cache.put(key, answer)
        return answer

    def _key(self, instruction: str, first: str, second: str) -> str:
        judge = [self._chat.model, self._chat.shown_url, self._template.sha256, self._body]
        return question_key([judge, instruction, first, second])


def _orders(pair: Pair) -> list[tuple[str, str, str]]:
    instruction, base, evaluated = pair
    return [(instruction, base, evaluated), (instruction, evaluated, base)]


def _given_up(verdicts: list[Verdict], pairs: int) -> list[Verdict]:
    reason = f"not asked, because the first {len(verdicts)} all failed"
    return [Verdict(preference=None, failure=reason)] * (pairs - len(verdicts))


def read_answer(answer: Any) -> dict[str, Any]:
    """What is kept of an answer; raises ValueError where it has no usable log-probabilities."""
    choice = answer["choices"][0]
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        raise ValueError("the answer has no log-probabilities, which the weighted preference needs")
    top = {entry["token"]: float(entry["logprob"]) for entry in content[0]["top_logprobs"]}
    usage = answer.get("usage") or {}
    return {
        "first_preferred": first_preferred(top),
        "top_logprobs": top,
        "tokens": {side: int(usage.get(f"{side}_tokens") or 0) for side in ("prompt", "completion")},
        "model": str(answer.get("model", "")),
    }


def first_preferred(top: Mapping[str, float]) -> float:
    """P(first | first or second) from the first token's log-probabilities; a name that is not among them has none.

    Raises ValueError when neither is: then nothing is known.
    """
    one, other = top.get(FIRST, -math.inf), top.get(SECOND, -math.inf)
    if not math.isfinite(max(one, other)):
        raise ValueError(
            f"neither {FIRST!r} nor {SECOND!r} is among the {len(top)} likeliest first tokens "
            f"({', '.join(map(repr, list(top)[:5]))}); raise --top-logprobs or take a model that follows the template"
        )
    return 1 / (1 + math.exp(other - one)) if other - one < 700 else 0.0
