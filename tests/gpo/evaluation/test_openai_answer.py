"""What is read from a chat judge's answer: the weighted preference of its first token, and its tokens.

Run: python -m pytest tests/gpo/evaluation/test_openai_answer.py
"""

import json
import math

import pytest

from gpo.evaluation.openai_judge import first_preferred, read_answer
from tests.gpo.evaluation.scripted_server import answered, good


def test_the_weighted_preference_is_that_of_the_two_names_alone() -> None:
    assert first_preferred({"m": math.log(0.3), "M": math.log(0.1), "x": math.log(0.6)}) == pytest.approx(0.75)
    assert first_preferred({"m": -1.0, "x": -0.1}) == 1.0
    assert first_preferred({"M": -1.0, "x": -0.1}) == 0.0
    assert first_preferred({"m": -2000.0, "M": -1.0}) == 0.0
    with pytest.raises(ValueError, match="neither 'm' nor 'M' is among the 1 likeliest first tokens"):
        first_preferred({"x": 0.0})


def test_a_name_without_a_chance_counts_as_one_that_is_not_there() -> None:
    found = read_answer(json.loads(answered(-math.inf, -1.0).text))
    assert found["first_preferred"] == 0.0 and set(found["top_logprobs"]) == {"M", "the"}


def test_an_answer_without_usage_costs_nothing_known() -> None:
    answer = json.loads(good(0.25).text)
    del answer["usage"]
    found = read_answer(answer)
    assert found["tokens"] == {"prompt": 0, "completion": 0} and found["first_preferred"] == pytest.approx(0.25)
