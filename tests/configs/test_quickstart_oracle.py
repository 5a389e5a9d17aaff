"""The quick start's oracle: its three rules, that it is skew, and that small differences chain to a cycle."""

import itertools
from pathlib import Path

import pytest

pytest.importorskip("vaderSentiment")

from reward.preference import cyclic_triples
from reward.source import Answer, AnswerGroup, FunctionSource, PreferenceSource, open_source

ORACLE = Path(__file__).parents[2] / "configs" / "quickstart_oracle.py"
PROMPT = [{"role": "user", "content": "How was the day?"}]
WARM, COLD = "This is wonderful, I love it. ", "This is terrible, I hate it. "


def words(count: int, start: str = "", finished: bool = True) -> Answer:
    return Answer(start + "word " * (count - len(start.split())), finished)


@pytest.fixture(scope="module")
def source() -> PreferenceSource:
    return open_source(f"python:{ORACLE}:prefer", max_length=1, batch_tokens=1)


def prefer(source: PreferenceSource, a: Answer, b: Answer) -> float:
    assert isinstance(source, FunctionSource)
    return source.prefer(PROMPT, a, b)


def test_much_shorter_goes_before_warmer_and_warmer_before_longer(source: PreferenceSource) -> None:
    assert prefer(source, words(20, COLD), words(39, WARM)) == 1.0
    assert prefer(source, words(20, COLD), words(38, WARM)) == -1.0
    assert prefer(source, words(20, WARM), words(38, COLD)) == 1.0
    assert prefer(source, words(38), words(20)) == 1.0
    assert prefer(source, words(20, WARM), words(21, WARM)) == -1.0
    assert prefer(source, words(20), Answer("other " * 20, True)) == 0.0


def test_an_unfinished_answer_counts_twelve_words_more(source: PreferenceSource) -> None:
    assert prefer(source, words(20), words(32, finished=False)) == 1.0  # 44 words: beyond patience
    assert prefer(source, words(20), words(32)) == -1.0
    assert prefer(source, words(20, finished=False), words(32)) == 0.0


def test_the_oracle_is_skew(source: PreferenceSource) -> None:
    starts, counts = ("", WARM, COLD), (8, 20, 40, 60)
    answers = [words(n, start, end) for n in counts for start in starts for end in (True, False)]
    for a, b in itertools.product(answers, repeat=2):
        assert prefer(source, a, b) == -prefer(source, b, a)


def test_three_lengths_make_a_cycle(source: PreferenceSource) -> None:
    (read,) = source.read([AnswerGroup(PROMPT, [words(15), words(30), words(45)])])
    assert cyclic_triples(source.compare(read)) == [(0, 2, 1)]  # 15 over 45 over 30 over 15
