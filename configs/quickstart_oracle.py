"""The quick start's oracle: a preference that no scalar reward can have, made of three everyday rules.

It is a lexicographic semiorder (A. Tversky, "Intransitivity of preferences", Psychological Review, 1969). Of
two answers,

1. if their lengths differ by more than 18 words, the shorter is preferred (patience);
2. else, if their warmth differs by more than 0.5, the warmer (VADER's compound sentiment, in [-1, 1]);
3. else the longer (more detail).

Each rule alone is an order. The cycles come from the limits: a rule that is silent about a small difference
speaks about the sum of two. Of three equally warm answers with 15, 30 and 45 words, 30 beats 15 and 45 beats
30, both by rule 3, as 15 words more try nobody's patience; but 15 beats 45 by rule 1, as 30 words more do.
About 12 % of the decided triples of SmolLM2's samples are such cycles (measured by scripts/quickstart_preferences.py).

An answer cut by the token limit counts 12 words more than it shows: it is not over yet.

Use it as a preference source: `python:configs/quickstart_oracle.py:prefer`.
"""

from functools import lru_cache

from reward.source import Answer, Message

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise ImportError("vaderSentiment is missing; `pip install 'gpo-align[quickstart]'` installs it") from error

PATIENCE_WORDS = 18
WARMTH_GAP = 0.5
UNFINISHED_WORDS = 12


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
