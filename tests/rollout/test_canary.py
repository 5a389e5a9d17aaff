"""The canary: the gap between two sets of log-probabilities, and the verdict on it.

Run: python -m pytest tests/rollout/test_canary.py
"""

import json
import math
from dataclasses import asdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.canary import FIXED_TEXTS, Gap, Movement, canary_rows, gap, judge, movement
from tests.tiny import make_tokenizer

numbers = st.floats(-50, 0)


def test_the_gap_is_the_mean_and_the_largest_difference_over_all_tokens() -> None:
    found = gap([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.0]])
    assert found == Gap(mean=0.5, largest=1.0)


@given(st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4), st.floats(-1, 1))
def test_the_gap_is_symmetric_zero_against_itself_and_sees_a_shift(rows: list[list[float]], shift: float) -> None:
    assert gap(rows, rows) == Gap(0.0, 0.0)
    moved = [[value + shift for value in row] for row in rows]
    assert gap(rows, moved) == gap(moved, rows)
    assert gap(rows, moved).mean == pytest.approx(abs(shift), abs=1e-12)
    assert gap(rows, moved).mean <= gap(rows, moved).largest + 1e-15


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_means_broken_weights(broken: float) -> None:
    with pytest.raises(ValueError, match="weights are broken"):
        gap([[-1.0, broken]], [[-1.0, -1.0]])
    with pytest.raises(ValueError, match="weights are broken"):
        gap([[broken]], [[broken]])


@pytest.mark.parametrize(("ours", "theirs"), [([[-1.0]], [[-1.0], [-1.0]]), ([[-1.0, -2.0]], [[-1.0]]), ([[-1.0]], [])])
def test_texts_or_tokens_that_are_missing_on_one_side_are_an_error(
    ours: list[list[float]], theirs: list[list[float]]
) -> None:
    with pytest.raises(ValueError):
        gap(ours, theirs)


FLOOR = Gap(mean=0.01, largest=0.1)
SHOWN = Movement(share=1.0, error=0.01)


@pytest.mark.parametrize(
    ("found", "accepted"),
    [
        (Gap(0.0, 0.0), True),
        (Gap(0.04, 0.4), True),
        (Gap(0.041, 0.1), False),
        (Gap(0.01, 0.41), False),
    ],
)
def test_a_gap_is_accepted_while_mean_and_largest_stay_within_the_factor(found: Gap, accepted: bool) -> None:
    assert judge(found, FLOOR, Gap(1.0, 1.0), SHOWN, 4.0).accepted is accepted


def test_an_update_smaller_than_the_noise_is_named() -> None:
    small = judge(Gap(0.01, 0.1), FLOOR, Gap(0.01, 5.0), Movement(share=0.0, error=0.5), 4.0)
    assert small.accepted and small.below_noise and "below the noise" in small.sentence()
    large = judge(Gap(0.0123, 0.1), FLOOR, Gap(0.02, 0.02), SHOWN, 4.0)
    assert not large.below_noise and "below the noise" not in large.sentence()
    assert "moved them by 0.02, the engine shows 100% of it" in large.sentence()
    assert "0.012 nats" in large.sentence() and "is 0.01 (" in large.sentence()


def test_the_fixed_texts_become_prompt_and_answer_ids_without_a_second_start_token() -> None:
    tokenizer = make_tokenizer()
    rows = canary_rows(tokenizer)
    assert len(rows) == len(FIXED_TEXTS)
    for (prompt_ids, answer_ids), (question, answer) in zip(rows, FIXED_TEXTS, strict=True):
        assert question in tokenizer.decode(prompt_ids) and tokenizer.decode(answer_ids) == answer
        assert prompt_ids.count(tokenizer.bos_token_id) == 1 and tokenizer.bos_token_id not in answer_ids


def rows_of(values: list[float]) -> list[list[float]]:
    return [values[:20], values[20:]]


@pytest.mark.parametrize(("shown", "complete"), [(1.0, True), (0.0, False), (0.5, False), (2.0, False)])
def test_an_update_above_the_noise_must_show_in_full(shown: float, complete: bool) -> None:
    random = Random(3)
    before = [random.gauss(-2, 1) for _ in range(80)]
    update = [random.gauss(0, 0.05) for _ in before]
    now = [a + b for a, b in zip(before, update, strict=True)]
    engine = [a + shown * b + random.gauss(0, 0.0125) for a, b in zip(before, update, strict=True)]
    moved = movement(rows_of(before), rows_of(now), rows_of(engine), FLOOR)
    assert moved.share == pytest.approx(shown, abs=0.15) and moved.visible and moved.complete is complete
    found = gap(rows_of(now), rows_of(engine))
    verdict = judge(found, FLOOR, gap(rows_of(before), rows_of(now)), moved, 100.0)
    assert verdict.accepted is complete and not verdict.below_noise


def test_an_update_below_the_noise_says_nothing_and_one_of_nothing_neither() -> None:
    random = Random(4)
    before = [random.gauss(-2, 1) for _ in range(80)]
    now = [value + random.gauss(0, 0.001) for value in before]
    for engine in (before, now):
        moved = movement(rows_of(before), rows_of(now), rows_of(engine), FLOOR)
        assert not moved.visible and judge(Gap(0.0, 0.0), FLOOR, Gap(0.001, 0.01), moved, 4.0).accepted
    still = movement([before], [before], [before], FLOOR)
    assert not still.visible
    json.dumps(asdict(still), allow_nan=False)  # As the journal has it.
