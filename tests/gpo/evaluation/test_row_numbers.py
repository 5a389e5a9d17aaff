"""Rows of a file in a message.

Run: python -m pytest tests/gpo/evaluation/test_row_numbers.py
"""

import pytest

from gpo.evaluation.row_numbers import named_rows


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([7], "row 7"),
        ([7, 7], "row 7"),
        ([1, 2], "rows 1-2"),
        ([40, 3, *range(17, 40)], "rows 3, 17-40"),
        ([1, 3, 5], "rows 1, 3, 5"),
        (range(1, 806), "rows 1-805"),
    ],
)
def test_rows_that_follow_each_other_are_said_as_a_range(numbers: list[int], told: str) -> None:
    assert named_rows(numbers) == told
