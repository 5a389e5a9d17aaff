"""Seeds: one number for each request, whatever the sharding, the pool or a restart.

Run: python -m pytest tests/rollout/test_seeds.py
"""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from rollout.seeds import request_seed

GOLDEN = 3458170541079128734
"""A change of it changes every answer of every run, and makes a restart draw other ones than the first start."""

numbers = st.integers(0, 2**31)


@given(numbers, numbers, st.text(max_size=20), st.text(max_size=20))
def test_a_seed_leaves_room_for_adding_k_below_63_bits(run: int, iteration: int, prompt: str, purpose: str) -> None:
    seed = request_seed(run, iteration, prompt, purpose)
    assert 0 <= seed < 2**62
    assert seed + 2**31 < 2**63


def test_seeds_fill_all_62_bits() -> None:
    seeds = [request_seed(0, 1, str(number)) for number in range(400)]
    for bit in range(62):
        share = sum(seed >> bit & 1 for seed in seeds) / len(seeds)
        assert 0.35 < share < 0.65, f"bit {bit} is set in {share:.0%} of the seeds"


def test_a_seed_is_the_same_in_every_version_and_process() -> None:
    assert request_seed(17, 3, "0123456789abcdef") == GOLDEN
    code = "from rollout.seeds import request_seed; print(request_seed(17, 3, '0123456789abcdef'))"
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == GOLDEN


def test_a_seed_differs_by_each_of_its_parts() -> None:
    base = (17, 3, "prompt", "rollout")
    others = [(18, 3, "prompt", "rollout"), (17, 4, "prompt", "rollout"), (17, 3, "tpmorp", "rollout")]
    others += [(17, 3, "prompt", "heldout")]
    assert len({request_seed(*parts) for parts in [base, *others]}) == 5
    assert request_seed(17, 3, "prompt") == request_seed(*base)


@given(numbers, numbers, numbers, numbers)
def test_digits_of_one_part_never_pass_for_those_of_the_next(run: int, iteration: int, run2: int, it2: int) -> None:
    same = (run, iteration) == (run2, it2)
    assert (request_seed(run, iteration, "p") == request_seed(run2, it2, "p")) == same


def test_seeds_of_many_prompts_are_distinct() -> None:
    assert len({request_seed(0, iteration, str(number)) for iteration in range(5) for number in range(2000)}) == 10000
