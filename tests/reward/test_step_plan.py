"""The plan of steps: the same steps for any number of workers, groups whole, weights kept.

Run: python -m pytest tests/reward/test_step_plan.py
"""

from array import array
from collections import Counter

import pytest

from reward.encoded_pairs import EncodedPair
from reward.errors import RewardInputError
from reward.pair_sources import epoch_order
from reward.pairs import PreferencePair
from reward.step_plan import PlannedPasses, Share, balanced_parts, cut_steps, grouped, plan_steps


def pair(group: str, number: int, length: int = 5) -> EncodedPair:
    ask = {"role": "user", "content": group}
    talks = [[ask, {"role": "assistant", "content": f"{number} {side}"}] for side in (0, 1)]
    rows = (array("i", [7, number, *[1] * length]), array("i", [7, number, *[2] * length]))
    return EncodedPair(rows, (0, 0), 1, PreferencePair(*talks, group=group))


GROUPS = grouped([pair(f"g{number // 3}", number, 3 + number % 7) for number in range(30)])


def test_pairs_of_a_group_stay_in_one_step_and_on_one_worker() -> None:
    steps = plan_steps([GROUPS], [None], seed=1, epochs=2, batch_pairs=7)
    for step in steps:
        groups = [GROUPS[place] for _, place in step]
        assert sum(map(len, groups)) <= 7
        for part in balanced_parts(groups, 2):
            assert all(len({one.pair.group for one in group}) == 1 for group in part)
    seen = Counter(place for step in steps for place in step)
    assert set(seen.values()) == {2} and len(seen) == len(GROUPS)


def test_every_number_of_workers_computes_the_same_pairs_with_the_same_weight() -> None:
    steps = plan_steps([GROUPS], [None], seed=3, epochs=1, batch_pairs=7)
    for number in range(len(steps)):
        totals = []
        for world, accumulation in ((1, 1), (2, 1), (3, 2), (1, 4)):
            weight: Counter[tuple[int, ...]] = Counter()
            for rank in range(world):
                share = Share(rank=rank, world=world, accumulation=accumulation)
                passes = PlannedPasses([GROUPS], steps, share)
                for part in range(accumulation):
                    batch = passes[number * accumulation + part]
                    for one, factor in zip(batch.pairs, batch.weight_N.tolist(), strict=True):
                        if factor:
                            weight[one.row(0)] += round(factor / world * 1e6)  # type: ignore[assignment]
            totals.append(weight)
        assert all(one.keys() == totals[0].keys() for one in totals)
        assert all(abs(one[key] - totals[0][key]) <= 2 for one in totals for key in one)


def test_a_fraction_of_an_epoch_takes_its_first_steps_and_max_steps_cuts() -> None:
    whole = plan_steps([GROUPS], [None], seed=1, epochs=1, batch_pairs=6)
    half = plan_steps([GROUPS], [None], seed=1, epochs=0.5, batch_pairs=6)
    assert half == whole[: len(half)] and len(half) == -(-len(whole) // 2)
    assert plan_steps([GROUPS], [None], seed=1, epochs=9, batch_pairs=6, max_steps=4) == whole[:4]
    assert len(plan_steps([GROUPS], [None], seed=1, epochs=1e12, batch_pairs=6, max_steps=4)) == 4, (
        "and no more is laid out"
    )
    assert plan_steps([GROUPS], [None], seed=2, epochs=1, batch_pairs=6) != whole


def test_weights_share_an_epoch_among_sources() -> None:
    order = epoch_order([90, 10], [1.0, 1.0], seed=0, epoch=0)
    counts = Counter(source for source, _ in order)
    assert counts == {0: 50, 1: 50}
    small = Counter(place for source, place in order if source == 1)
    assert set(small.values()) == {5}
    assert Counter(source for source, _ in epoch_order([90, 10], [None, None], 0, 0)) == {0: 90, 1: 10}
    with pytest.raises(RewardInputError, match="all or none"):
        epoch_order([1, 1], [1.0, None], 0, 0)


def test_a_group_larger_than_a_step_is_a_step_of_its_own() -> None:
    assert [len(step) for step in cut_steps([[1], [2] * 5, [3], [4]], 2)] == [1, 1, 2]
