"""Answers that say nothing are told by kind.

Run: python -m pytest tests/rollout/test_degenerate.py
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.degenerate import degenerate_kinds, ends_in_loop


def test_each_kind_is_named_and_the_first_of_equal_answers_is_kept() -> None:
    loop = [7, 8, 9] * 20
    found = degenerate_kinds(["a", " \n", "a", "b", "loop"], [[1], [2], [1], [3], loop])
    assert found == ["", "empty", "identical", "", "loop"]


@pytest.mark.parametrize("period", [1, 2, 7, 40])
@pytest.mark.parametrize("end", [[], [99]], ids=["cut", "ended"])
def test_a_loop_is_seen_behind_any_start_and_before_an_end_token(period: int, end: list[int]) -> None:
    repeats = max(4, -(-32 // period))
    assert ends_in_loop([500, 501, 502, *list(range(period)) * repeats, *end])
    assert not ends_in_loop([500, 501, 502, *list(range(period)) * 3, *end])


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=200))
def test_text_without_repeats_is_no_loop(ids: list[int]) -> None:
    assert not ends_in_loop(ids)
