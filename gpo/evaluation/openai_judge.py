"""A chat model as judge of pairs, as AlpacaEval 2 does it: the weighted preference of the first token, in both orders.

The model is asked for one token, the name of the better answer. The preference is the probability of the one name among
the two, from the first token's log-probabilities. Each pair is asked twice, with the answers exchanged, and the two
preferences are averaged, so that a liking for the first place cancels.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpo.evaluation.chat_client import ChatSettings
from gpo.evaluation.judge_template import JudgeTemplate
from gpo.evaluation.judgement_cache import question_key
from gpo.evaluation.judges import Verdict
from gpo.evaluation.outputs import OutputFile
from gpo.evaluation.prices import Prices, bill
from gpo.evaluation.questions import Answers, Asked, Question, ask_all, usage_of

FIRST, SECOND = "m", "M"
"""The template's names of the first and the second answer."""


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
        groups = []
        for one, other in pairs:
            base, evaluated = baseline.rows[one], outputs.rows[other]
            groups.append([
                self._question(base.asked, base.output, evaluated.output),
                self._question(base.asked, evaluated.output, base.output),
            ])  # fmt: skip
        asked = ask_all(self._chat, groups, read_answer, self._cache, "pairs")
        self._record = self._made(asked, sum(map(len, groups)))
        return [self._verdict(result) for result in asked.results]

    def record(self) -> dict[str, Any]:
        """Of the last judging."""
        return self._record

    def _question(self, instruction: str, first: str, second: str) -> Question:
        judge = [self._chat.model, self._chat.shown_url, self._template.sha256, self._body]
        messages = self._template.messages(instruction, first, second)
        return Question(question_key([judge, instruction, first, second]), {"messages": messages, **self._body})

    def _verdict(self, result: Answers | str) -> Verdict:
        """The mean of both orders; a failure of either is a failure of the pair."""
        if isinstance(result, str):
            return Verdict(preference=None, failure=result)
        # In the first order the evaluated answer stands second, in the other first.
        preference = (1 - result[0]["first_preferred"] + result[1]["first_preferred"]) / 2
        prices = [self._prices.of(answer["tokens"]) for answer in result]
        return Verdict(
            preference=preference,
            raw=result,
            seconds=sum(answer["seconds"] for answer in result),
            price=None if None in prices else sum(price for price in prices if price is not None),
        )

    def _made(self, asked: Asked, questions: int) -> dict[str, Any]:
        return {
            "kind": "openai",
            "model": self._chat.model,
            "models_that_answered": asked.models(),
            "base_url": self._chat.shown_url,
            "template": {"name": self._template.name, "sha256": self._template.sha256},
            "request": self._body,
            "orders": 2,
            **bill(asked, self._prices),
            "questions": questions,
            "questions_known_from_the_cache": asked.known,
            "requests_sent": asked.counts.requests,
            "faults": dict(asked.counts.faults),
        }


def read_answer(answer: Any) -> dict[str, Any]:
    """What is kept of an answer; raises ValueError where it has no usable log-probabilities."""
    choice = answer["choices"][0]
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        raise ValueError("the answer has no log-probabilities, which the weighted preference needs")
    found = {entry["token"]: float(entry["logprob"]) for entry in content[0]["top_logprobs"]}
    # Servers in Python say NaN and -Infinity: the former is no answer, the latter says what leaving the name out says.
    if not all(logprob < math.inf for logprob in found.values()):
        raise ValueError("a log-probability in the answer is not a number")
    top = {token: logprob for token, logprob in found.items() if math.isfinite(logprob)}
    return {"first_preferred": first_preferred(top), "top_logprobs": top, **usage_of(answer)}


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
