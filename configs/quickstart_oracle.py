"""The quick start's oracle: a preference that no scalar reward can have, made of three everyday rules.

It is a lexicographic semiorder (A. Tversky, "Intransitivity of preferences", Psychological Review, 1969). Of
two answers,

1. if their lengths differ by more than 25 words, the shorter is preferred (patience);
2. else, if their warmth differs by more than 0.5, the warmer (VADER's compound sentiment, in [-1, 1]);
3. else the longer (more detail).

Each rule alone is an order. The cycles come from the limits: a rule that is silent about a small difference
speaks about the sum of two. Of three equally warm answers with 20, 40 and 60 words, 40 beats 20 and 60 beats
40, both by rule 3, as 20 words more try nobody's patience; but 20 beats 60 by rule 1, as 40 words more do.
About 10 % of the decided triples of SmolLM2's samples are such cycles (measured by scripts/quickstart.py).

An answer cut by the token limit counts 15 words more than it shows: it is not over yet.

Use it as a preference source: `python:configs/quickstart_oracle.py:prefer`.
"""

from functools import lru_cache

from reward.source import Answer, Message

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise ImportError("vaderSentiment is missing; `pip install 'gpo-align[quickstart]'` installs it") from error

PATIENCE_WORDS = 25
WARMTH_GAP = 0.5
UNFINISHED_WORDS = 15


def prefer(messages: list[Message], a: Answer, b: Answer) -> float:
    """1.0 if `a` is preferred, -1.0 if `b` is, 0.0 if no rule tells them apart."""
    longer = length(a) - length(b)
    if abs(longer) > PATIENCE_WORDS:
        return _sign(-longer)
    warmer = warmth(a.text) - warmth(b.text)
    if abs(warmer) > WARMTH_GAP:
        return _sign(warmer)
    return _sign(longer)


def length(answer: Answer) -> int:
    """Words between white space, and what an unfinished answer still has to say."""
    return len(answer.text.split()) + (0 if answer.finished else UNFINISHED_WORDS)


@lru_cache(maxsize=100_000)
def warmth(text: str) -> float:
    """VADER's compound sentiment in [-1, 1]; each text is judged once."""
    return float(_analyzer().polarity_scores(text)["compound"])


@lru_cache(maxsize=1)
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def _sign(difference: float) -> float:
    return float((difference > 0) - (difference < 0))
