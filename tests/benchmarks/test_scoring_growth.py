"""Only a linear cost of answers is within the claim, and what a profile says of another one.

Run: python -m pytest tests/benchmarks/test_scoring_growth.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scoring_growth import claims_of, growth, make_texts, markdown
from benchmarks.scoring_ways import prepare
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
SIZES = (2, 4, 8, 16, 32, 64)


def at(k: int, squared: float) -> float:
    """Seconds of a table of K answers, half of one of which is paid once."""
    return 0.5 + 0.1 * k + squared * k**2


def rows(squared: float, in_profile: float) -> list[dict[str, Any]]:
    """Tables that cost so much more with the square of their answers, by the clock and in a profile."""
    return [
        {
            "k": k,
            "seconds": at(k, squared),
            "rounds": [at(k, squared), 1.01 * at(k, squared)],
            "kinds": {"matrix products": 0.05 * k, "attention": at(k, in_profile) - 0.06 * k, "between": 0.01 * k},
            "pairs": 1.0,
            "pairs_measured": k <= 8,
        }
        for k in SIZES
    ]


def test_a_cost_that_is_linear_holds() -> None:
    (linear,) = claims_of(rows(0.0, 0.0))
    assert linear.holds and linear.value == pytest.approx(1) and linear.spread == pytest.approx(0)


def test_the_kind_of_operator_that_makes_a_further_answer_dearer_is_the_reason() -> None:
    # An answer of 64 costs less than half of one of 2 here too, because what is paid once weighs most with 2.
    (squared,) = claims_of(rows(0.001, 0.001))
    assert not squared.holds and "from 32 to 64 / from 16 to 32" in squared.what
    assert squared.reason == "a profile of the same tables gives 1.32, 100% of it attention"
    assert squared.reason in markdown(rows(0.001, 0.001))


def test_growth_that_no_profile_shows_is_said_to_be_none_of_an_operators() -> None:
    (squared,) = claims_of(rows(0.001, 0.0))
    assert not squared.holds
    assert squared.reason == "a profile of the same tables gives 1.00, so that no kind of operator is the reason"


def test_tables_are_swept_over_in_all_sizes(tmp_path: Path) -> None:
    prepare(save_tiny_model(tmp_path / "base"), tmp_path / "checkpoint", "float32")
    found = growth(tmp_path / "checkpoint", "float32", make_texts(9, words=3), repeats=1)
    assert [row["k"] for row in found] == [2, 4, 8] and {len(row["rounds"]) for row in found} == {5}
    assert all(row["kinds"]["matrix products"] > 0 and row["kinds"]["optimizer"] == 0 for row in found)
