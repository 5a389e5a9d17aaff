"""What the scoring benchmark says of its numbers.

Run: python -m pytest tests/benchmarks/test_scoring.py
"""

from benchmarks.scoring import linear_claim


def tables(dearer: float, in_profile: float) -> list[dict[str, object]]:
    """Three tables whose largest costs so much more an answer than the others, by the clock and in a profile."""

    def at(k: int, more: float) -> float:
        return 0.1 * k + (more * (k - 32) if k > 32 else 0.0)

    return [
        {
            "k": k,
            "seconds": at(k, dearer),
            "rounds": [at(k, dearer), at(k, dearer)],
            "kinds": {"matrix products": 0.05 * k, "attention": 0.01 * k, "all other": at(k, in_profile) - 0.06 * k},
        }
        for k in (16, 32, 64)
    ]


def test_a_cost_that_does_not_grow_holds() -> None:
    claim = linear_claim(tables(0.0, 0.0))
    assert claim.holds and claim.value == 1 and "from 32 to 64" in claim.what


def test_the_kind_of_operator_that_makes_a_further_answer_dearer_is_the_reason() -> None:
    claim = linear_claim(tables(0.04, 0.04))
    assert not claim.holds and claim.value == 1.4
    assert claim.reason == "a profile of the same tables gives 1.40, 100% of it all other"


def test_growth_that_no_profile_shows_is_said_to_be_none_of_an_operators() -> None:
    claim = linear_claim(tables(0.04, 0.0))
    assert not claim.holds
    assert claim.reason == "a profile of the same tables gives 1.00, so that no kind of operator is the reason"
