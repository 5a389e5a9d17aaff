"""A judge at a URL as a preference source: any other model, or people, behind one small JSON call.

What it is: POST with {"comparisons": [{"messages", "a": {"text", "finished"}, "b": {…}}, …]}; the answer must be
{"preferences": [p, …]}, one number in [-1, 1] each, positive when `a` is preferred. What it is not: it sends no
secrets but a bearer token from the environment variable GPO_JUDGE_TOKEN, where that is set.

Every wait has a deadline; what may pass by itself (no connection, 429, 5xx) is tried again a few times.
"""

import http.client
import json
import logging
import math
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from reward.errors import RewardInputError

if TYPE_CHECKING:
    from torch import Tensor

    from reward.source import Answer, AnswerGroup, ReadGroup

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "GPO_JUDGE_TOKEN"
SECONDS = 120.0
TRIES = 4
CALLS_AT_A_TIME = 8
MOST_COMPARISONS = 256
"""Of one call."""


class UrlSource:
    """Asks a judge over HTTP."""

    def __init__(self, url: str, tau: float, seconds: float = SECONDS, pause: float = 1.0) -> None:
        if not (tau > 0 and math.isfinite(tau)):
            raise RewardInputError(f"tau is {tau!r}, expected a finite number above 0")
        check_url(url)
        self.url, self.tau = url, tau
        self._seconds, self._pause = seconds, pause

    def read(self, groups: "list[AnswerGroup]") -> "list[ReadGroup]":
        """Nothing is asked yet: the judge sees pairs."""
        from reward.source import ReadGroup, check_groups

        check_groups(groups)
        return [ReadGroup(group, None, None) for group in groups]

    def compare(self, group: "ReadGroup", other: "ReadGroup | None" = None) -> "Tensor":
        """Score_KM; a pair of one group is asked in one order and counted in both, so that the table is skew.

        A pair of two groups is asked in both orders, because a judge's taste for whatever comes first would go straight
        into a policy's win rate.
        """
        import torch

        from reward.source import check_same_prompt

        answers = group.group.answers
        if other is not None:
            check_same_prompt(group, other)
            opponents = other.group.answers
            pairs = [(a, b) for a in answers for b in opponents]
            there, back = torch.tensor(self._ask(group, pairs + [(b, a) for a, b in pairs])).chunk(2)
            return (there - back).view(len(answers), len(opponents)) / 2
        places = [(i, j) for i in range(len(answers)) for j in range(i)]
        scores = self._ask(group, [(answers[i], answers[j]) for i, j in places])
        table_KK = torch.zeros(len(answers), len(answers))
        for (i, j), score in zip(places, scores, strict=True):
            table_KK[i, j], table_KK[j, i] = score, -score
        return table_KK

    def tables(self, groups: "list[ReadGroup]", others: "list[ReadGroup] | None" = None) -> "list[Tensor]":
        """Several calls at a time: most of a call is waiting."""
        with ThreadPoolExecutor(CALLS_AT_A_TIME) as threads:
            return list(threads.map(self.compare, groups, others or [None] * len(groups)))

    def _ask(self, group: "ReadGroup", pairs: "list[tuple[Answer, Answer]]") -> list[float]:
        comparisons = [{"messages": group.group.messages, "a": _plain(a), "b": _plain(b)} for a, b in pairs]
        scores: list[float] = []
        for start in range(0, len(comparisons), MOST_COMPARISONS):
            scores += self._preferences(comparisons[start : start + MOST_COMPARISONS])
        return scores

    def _preferences(self, comparisons: list[dict[str, Any]]) -> list[float]:
        reply = self._post(json.dumps({"comparisons": comparisons}).encode())
        try:
            found = json.loads(reply)["preferences"]
        except (ValueError, KeyError, TypeError):
            raise RewardInputError(f'{self.url} answered {reply[:80]!r}, expected {{"preferences": [...]}}') from None
        right = isinstance(found, list) and len(found) == len(comparisons)
        if not right or not all(type(p) in (int, float) and -1 <= p <= 1 for p in found):
            raise RewardInputError(
                f"{self.url} answered {found!r:.80}, expected {len(comparisons)} numbers in [-1, 1], one a comparison"
            )
        return [float(p) for p in found]

    def _post(self, body: bytes) -> bytes:
        """The reply; raises RewardInputError when the judge refuses or cannot be reached."""
        headers = {"Content-Type": "application/json"}
        if TOKEN_VARIABLE in os.environ:
            headers["Authorization"] = f"Bearer {os.environ[TOKEN_VARIABLE]}"
        why = ""
        for tries in range(TRIES):
            time.sleep(self._pause * (2**tries - 1))
            request = urllib.request.Request(self.url, data=body, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=self._seconds) as reply:
                    content: bytes = reply.read()
                    return content
            except urllib.error.HTTPError as error:
                why = f"status {error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:  # the latter for a reply that breaks off
                why = str(error) or type(error).__name__
            logger.warning("%s: %s (%d of %d tries)", self.url, why, tries + 1, TRIES)
        raise RewardInputError(f"{self.url} does not judge: {why}; see that it runs, then start again")


def check_url(url: str) -> None:
    """Refuse what cannot be a judge's address, and one that carries secrets; nothing is sent."""
    scheme, _, rest = url.partition("://")
    place = (rest or url).partition("?")[0].partition("/")[0]
    if "@" in place or "?" in url:
        # Not shown here either: messages stand in logs.
        raise RewardInputError(
            f"the judge's address at {place.rpartition('@')[2]} has a user, a password or a query in it, which would "
            f"stand in configs, logs, reports and model cards; leave them out, and put a token into {TOKEN_VARIABLE}"
        )
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise RewardInputError(f"the judge's address is {url!r}, expected url:http://HOST:PORT/PATH")


def _plain(answer: "Answer") -> dict[str, Any]:
    return {"text": answer.text, "finished": answer.finished}
