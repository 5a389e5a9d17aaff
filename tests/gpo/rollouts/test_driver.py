"""A few thousand prompts through the driver, by the benchmark's own pass: every prompt once, and little memory.

Run: python -m pytest tests/gpo/rollouts/test_driver.py
"""

from pathlib import Path

from benchmarks.rollout_driver import SAMPLES, one_pass


def test_prompts_go_through_the_driver_without_staying_in_it(tmp_path: Path) -> None:
    found = one_pass(4000, tmp_path, shard_prompts=50)  # It counts prompts, answers and files itself.
    assert found["prompts"] == 4000 and found["samples_a_second"] > 10 * SAMPLES
    assert found["driver_growth_mib"] < 100
