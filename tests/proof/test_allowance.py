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
    assert all(map(allowed.has_time_for, CASES)) and allowed.told() == ""


def test_a_short_form_begins_none_after_its_minutes_but_one_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    allowed = Allowance(2)
    now += 121
    assert [allowed.has_time_for(name) for name in CASES[:3]] == [True, False, False]
    assert allowed.told() == "not begun within 2 minutes: case 1, case 2\n"
    in_time = Allowance(2)
    now += 119
    assert all(map(in_time.has_time_for, CASES)) and in_time.told() == ""


def test_each_commit_has_an_order_of_its_own_so_that_each_case_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = set()
    for commit in ("one", "two", "one"):
        monkeypatch.setattr(allowance, "COMMIT", commit)
        orders.add(tuple(Allowance(1).order(CASES)))
    assert len(orders) == 2 and all(sorted(order) == sorted(CASES) for order in orders)
