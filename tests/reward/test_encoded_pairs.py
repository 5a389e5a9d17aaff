"""Pairs as token rows: a bad one is named by its number among all of them.

Run: python -m pytest tests/reward/test_encoded_pairs.py
"""

from dataclasses import replace

import pytest

from reward.encoded_pairs import PairEncoder
from reward.encoding import ConversationEncoder
from reward.errors import RewardInputError
from reward.pairs import PreferencePair
from reward.settings import RewardSettings
from reward.step_plan import StreamOfGroups
from tests.tiny import GEMMA_TEMPLATE, make_tokenizer

ENCODER = PairEncoder(ConversationEncoder(make_tokenizer(GEMMA_TEMPLATE), RewardSettings.published(2), 512))


def pair(prompt: str, role: str = "user") -> PreferencePair:
    talks = [[{"role": role, "content": prompt}, {"role": "assistant", "content": text}] for text in "ab"]
    return PreferencePair(*talks)


def test_a_pair_that_the_template_refuses_is_named_by_its_number() -> None:
    pairs = [pair(str(place)) for place in range(600)]
    for number in (1, 256, 257, 583):
        bad = [*pairs[: number - 1], pair("brief", "system"), *pairs[number:]]
        with pytest.raises(RewardInputError, match=f"row {number}: the chat template refuses.*the Nth pair"):
            list(ENCODER.encode(bad))


def test_a_sign_of_life_is_given_again_and_again_while_pairs_are_encoded() -> None:
    beats: list[int] = []
    encoder = PairEncoder(ENCODER._encoder, lambda: beats.append(1))
    assert len(list(encoder.encode([pair(str(place)) for place in range(600)]))) == 600 and len(beats) == 3


def test_the_data_set_of_a_bad_pair_is_named() -> None:
    with pytest.raises(RewardInputError, match="ultra: row 2: "):
        list(ENCODER.encode([replace(one, source="ultra") for one in (pair("q"), pair("brief", "system"))]))


def test_half_a_surrogate_pair_is_told_with_the_number_in_both_forms() -> None:
    for template in (True, False):
        bad = [replace(one, template=template) for one in (pair("q"), pair("r"), pair("\ud800"))]
        with pytest.raises(RewardInputError, match=r"row 3: '\\ud800' is half of a surrogate pair"):
            list(ENCODER.encode(bad))


def test_pairs_of_a_stream_are_counted_over_all_groups() -> None:
    groups = [[pair("q"), pair("r")], [pair("s")], [pair("t"), pair("brief", "system")]]
    with pytest.raises(RewardInputError, match="row 5: the chat template refuses"):
        list(StreamOfGroups(groups, ENCODER, "keep"))
