"""The evaluation's benchmark: its claim holds for a linear cost and for no other.

Run: python -m pytest tests/benchmarks/test_evaluation.py
"""

import pytest

from benchmarks.evaluation import MOST_GROWTH, QUICK_SIZES, SIZES, cost_growth


@pytest.mark.parametrize("sizes", [SIZES, QUICK_SIZES])
def test_only_a_linear_cost_is_within_the_claim(sizes: tuple[int, ...]) -> None:
    assert cost_growth(sizes, [9.0 + 3.5 * n for n in sizes]) == pytest.approx(1)
    # R^2 of a straight line through these is above 0.99, though half of the cost at 10 is quadratic.
    assert cost_growth(sizes, [9.0 + n + n**2 / 10 for n in sizes]) > 1.3 > MOST_GROWTH
