"""What a chat model's answers cost, where the caller says what a token costs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpo.evaluation.questions import Asked


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


def bill(asked: Asked, prices: Prices) -> dict[str, Any]:
    """What the numbers took in all, and what this start added to that, in tokens and US dollars."""
    now = dict(asked.counts.tokens)
    return {
        "tokens": asked.tokens,
        "tokens_of_this_start": now,
        "prices_usd_per_million_tokens": asdict(prices),
        "price_usd": prices.of(asked.tokens),
        "price_usd_of_this_start": prices.of(now),
    }
