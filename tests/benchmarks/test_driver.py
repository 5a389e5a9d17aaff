"""The driver's benchmark: what is counted of its passes. That its pass goes, tests/gpo/rollouts/test_driver.py shows.

Run: python -m pytest tests/benchmarks/test_driver.py
"""

from typing import Any

import pytest

from benchmarks import rollout_driver
from benchmarks.rollout_driver import claims_of, measure

SECONDS = [99.0, 2.0, 21.0, 2.0, 24.0]
"""Of each pass in order; the first is not counted."""


def test_a_tenth_and_the_whole_take_turns_behind_a_pass_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def pass_of(count: int, shard_prompts: int) -> dict[str, Any]:
        counts.append(count)
        seconds = SECONDS[len(counts) - 1]
        return {"samples_a_second": count / seconds, "driver_growth_mib": 7.0, "seconds": seconds}

    monkeypatch.setattr(rollout_driver, "pass_of", pass_of)
    found = measure(1_000_000, 256, 2)
    assert counts == [256, 100_000, 1_000_000, 100_000, 1_000_000]
    assert found["time_of_the_whole_to_ten_tenths"]["rounds"] == [1.05, 1.2]
    speed, growth, line = claims_of(found)
    assert speed.what == "driver: samples a second, 1,000,000 prompts" and speed.holds and speed.spread == 0.133
    assert growth.holds and not line.holds and line.value == 1.125
