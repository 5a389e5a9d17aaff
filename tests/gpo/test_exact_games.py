"""Self-play on small games with exact expectations: which baseline converges, and in what sense.

Run: python -m pytest tests/gpo/test_exact_games.py
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.games import (
    PLAIN,
    SKEWED,
    UNIFORM,
    WEIGHTED,
    bradley_terry_table,
    exploitability,
    play,
    type_chart,
)
from gpo.targets import optimistic_weights

CHART = Path(__file__).parents[3] / "shared" / "data" / "cyclic" / "pokemon_gen6_typechart.json"
needs_chart = pytest.mark.skipif(not CHART.exists(), reason=f"{CHART} is absent")
ETA, STEPS = 0.2, 4_000

# The Nash policy of the weighted game is not uniform, so its uniform start is not solved already.
GAMES = [
    pytest.param(WEIGHTED, [UNIFORM, *SKEWED], [3 / 6, 1 / 6, 2 / 6], id="weighted"),
    pytest.param(PLAIN, SKEWED, UNIFORM, id="plain"),
]


@pytest.mark.parametrize(("table", "starts", "nash"), GAMES)
def test_self_play_converges_on_average_while_the_last_policy_circles(
    table: Tensor, starts: list[list[float]], nash: list[float]
) -> None:
    policies = play(table, starts, "self", ETA, STEPS)
    assert (exploitability(table, policies.mean(0)) < 0.02).all()
    # Not one unlucky moment: in the last tenth no policy comes near, and each game gets worse than its start.
    recent = exploitability(table, policies[-STEPS // 10 :])
    assert (recent.amin(0) > 0.1).all()
    assert (recent.amax(0) > exploitability(table, policies[0])).all()


@pytest.mark.parametrize(("table", "starts", "nash"), GAMES)
def test_optimistic_play_brings_the_last_policy_to_the_nash_policy(
    table: Tensor, starts: list[list[float]], nash: list[float]
) -> None:
    last = play(table, starts, "optimistic", ETA, STEPS)[-1]
    assert (exploitability(table, last) < 0.02).all()
    torch.testing.assert_close(last, torch.tensor([nash], dtype=torch.float64).expand_as(last), rtol=0, atol=1e-3)


@needs_chart
def test_on_the_type_chart_self_play_converges_on_average_only() -> None:
    table = type_chart(CHART)
    assert (table == -table.T).all() and int((table > 0).sum()) == 75
    policies = play(table, [[1 / 18] * 18], "self", 0.1, 3_000)
    assert exploitability(table, policies.mean(0)).item() < 0.02
    assert exploitability(table, policies[-300:]).amin().item() > 0.1


@needs_chart
def test_on_the_type_chart_optimistic_play_brings_the_last_policy_below_a_fiftieth() -> None:
    table = type_chart(CHART)
    policies = play(table, [[1 / 18] * 18], "optimistic", 0.3, 10_000)
    assert exploitability(table, policies[-100:]).amax().item() < 0.02


def test_bradley_terry_scores_of_the_weighted_table_end_at_an_exploitable_policy() -> None:
    scores = bradley_terry_table(WEIGHTED)
    last = play(scores, [UNIFORM], "self", ETA, STEPS)[-1]
    assert exploitability(scores, last).item() < 0.02
    assert exploitability(WEIGHTED, last).item() > 0.2


@needs_chart
def test_bradley_terry_scores_of_the_type_chart_end_at_a_policy_that_one_answer_always_beats() -> None:
    table = type_chart(CHART)
    last = play(bradley_terry_table(table), [[1 / 18] * 18], "self", 0.1, 10_000)[-1]
    assert exploitability(table, last).item() > 0.9


def test_a_pull_to_a_slowly_moved_policy_also_brings_the_last_policy_home() -> None:
    last = play(WEIGHTED, [UNIFORM, *SKEWED], "self", ETA, STEPS, pull=0.05, anchor_every=200)[-1]
    assert (exploitability(WEIGHTED, last) < 0.02).all()


def test_optimistic_weights_are_twice_the_samples_minus_the_previous_answers() -> None:
    weight = optimistic_weights(4, torch.tensor([1.0, 3.0]))
    assert weight.tolist() == [0.5, 0.5, 0.5, 0.5, -0.25, -0.75]


def test_a_game_with_a_best_answer_is_won_by_self_play_alone() -> None:
    reward = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    table = reward[:, None] - reward
    last = play(table, [UNIFORM], "self", ETA, STEPS)[-1]
    assert exploitability(table, last).item() < 1e-6
    assert last.argmax().item() == 2
