"""Which cases a short form begins.

Run: python -m pytest tests/proof/test_allowance.py
"""

import time

import pytest

from tests.proof import allowance
from tests.proof.allowance import Allowance

CASES = [f"case {number}" for number in range(20)]


def test_without_a_limit_every_case_begins_in_its_order() -> None:
    allowed = Allowance(None)
    assert allowed.order(CASES) == CASES
    assert not any(map(allowed.is_over, CASES)) and allowed.told() == ""


def test_none_begins_after_the_minutes_and_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    allowed = Allowance(2)
    now += 119
    assert not any(map(allowed.is_over, CASES)) and allowed.told() == ""
    now += 2
    assert allowed.is_over("case 1", "case 2") and allowed.is_over("case 3")
    assert allowed.told() == "not begun within 2 minutes: case 1, case 2, case 3\n"


def test_each_commit_has_an_order_of_its_own_so_that_each_case_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = set()
    for commit in ("one", "two", "one"):
        monkeypatch.setattr(allowance, "COMMIT", commit)
        orders.add(tuple(Allowance(1).order(CASES)))
    assert len(orders) == 2 and all(sorted(order) == sorted(CASES) for order in orders)
