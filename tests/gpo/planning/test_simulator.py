"""The play of an iteration against what can be calculated.

Run: python -m pytest tests/gpo/planning/test_simulator.py
"""

import dataclasses
import math
import time

import pytest

from gpo.errors import UserError
from gpo.planning.rates import Rates
from gpo.planning.simulator import Play, play, play_of
from tests.gpo.small_runs import run_config

STEADY = Play(
    devices=8,
    samplers=8,
    scorers=8,
    learners=8,
    colocated=True,
    shards=64,
    sample_seconds=10.0,
    score_seconds=2.0,
    train_seconds=100.0,
    uneven=0.0,
)


def test_without_failures_an_even_play_takes_exactly_its_work() -> None:
    outcome = play(STEADY)
    assert outcome.generate_seconds == pytest.approx(64 / 8 * 12) and outcome.train_seconds == 100
    assert outcome.goodput == pytest.approx(1.0) and outcome.failures == 0 and outcome.lost_to_failures == 0


def test_shards_that_do_not_divide_leave_devices_idle() -> None:
    outcome = play(dataclasses.replace(STEADY, shards=65, train_seconds=0.0))
    assert outcome.generate_seconds == pytest.approx(math.ceil(65 / 8) * 12)
    assert outcome.goodput == pytest.approx(65 / (9 * 8))


def test_in_split_scoring_hides_behind_sampling() -> None:
    split = dataclasses.replace(STEADY, colocated=False, devices=9, scorers=1, score_seconds=1.0, train_seconds=0.0)
    assert play(split).generate_seconds == pytest.approx(64 / 8 * 10 + 8 * 1.0)
    slow = dataclasses.replace(split, score_seconds=4.0)
    assert play(slow).generate_seconds == pytest.approx(10 + 64 * 4.0), "one scorer that never waits after the first"


def test_an_engine_over_several_devices_works_and_fails_as_one() -> None:
    four = dataclasses.replace(STEADY, samplers=2, engine_devices=4, train_seconds=0.0)
    assert play(four).generate_seconds == pytest.approx(64 / 2 * (10 + 2 / 4))
    assert play(four).goodput == pytest.approx(1.0)
    failing = play(dataclasses.replace(four, hours_between_failures=1.0, shards=2000))
    each = 3600 / 4 + 300
    assert failing.failures == pytest.approx(2 * failing.generate_seconds / each, rel=0.25), "work, then repair"


def test_more_failures_than_progress_is_a_mistake_and_no_hang() -> None:
    with pytest.raises(UserError, match="a step checkpoint takes 100 s of 8 devices, of which one fails every 4 s"):
        play(dataclasses.replace(STEADY, shards=0, hours_between_failures=0.01))
    with pytest.raises(UserError, match="a shard takes 12 s of 1 devices"):
        play(dataclasses.replace(STEADY, hours_between_failures=0.0001))


def test_a_shape_needs_as_many_devices_as_it_has_parts() -> None:
    rates = Rates(sampled_tokens_a_second=9, scored_answers_a_second=9, trained_tokens_a_second=9, answer_tokens=9)
    split = run_config(cluster={"shape": "split"}, rollout={"engine": {"tensor_parallel": 2}})
    with pytest.raises(UserError, match="--simulate 3: cluster.shape=split needs 4 devices"):
        play_of(split, rates, 64, devices=3)
    small = play_of(split, rates, 64, devices=4)
    assert (small.samplers, small.engine_devices, small.scorers, small.learners) == (1, 2, 1, 1)
    assert play(small).goodput <= 1


def test_training_with_failures_takes_what_theory_says_of_checkpoint_and_restart() -> None:
    """Expected seconds of a segment s with failure rate r and repair R: (1/r + R)(exp(r s) - 1), n segments."""
    base = dataclasses.replace(
        STEADY, shards=0, train_seconds=10 * 600.0, hours_between_failures=2.0, repair_seconds=300.0
    )
    rate = 8 / (2.0 * 3600)
    expected = 10 * (1 / rate + 300) * (math.exp(rate * 600) - 1)
    plays = [play(dataclasses.replace(base, seed=seed)).train_seconds for seed in range(3000)]
    mean = sum(plays) / len(plays)
    error = (sum((value - mean) ** 2 for value in plays) / len(plays)) ** 0.5 / len(plays) ** 0.5
    assert abs(mean - expected) < 4 * error


def test_failures_cost_goodput_and_what_is_lost_is_told() -> None:
    failing = dataclasses.replace(STEADY, shards=640, hours_between_failures=0.5, repair_seconds=60.0)
    outcome = play(failing)
    assert outcome.failures > 0 and 0 < outcome.lost_to_failures < 1
    assert outcome.goodput < play(dataclasses.replace(failing, hours_between_failures=None)).goodput
    assert outcome.goodput + outcome.lost_to_failures <= 1 + 1e-9


def test_the_same_seed_gives_the_same_play() -> None:
    failing = dataclasses.replace(STEADY, hours_between_failures=1.0, uneven=0.5, seed=3)
    assert play(failing) == play(failing) != play(dataclasses.replace(failing, seed=4))


def test_ten_thousand_devices_are_played_in_seconds() -> None:
    started = time.perf_counter()
    many = dataclasses.replace(
        STEADY, devices=10_000, samplers=10_000, scorers=10_000, learners=10_000, shards=100_000,
        hours_between_failures=50_000.0, uneven=0.3,
    )  # fmt: skip
    outcome = play(many)
    assert time.perf_counter() - started < 20
    assert 0.5 < outcome.goodput < 1
