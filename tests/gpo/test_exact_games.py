"""Self-play on small games with exact expectations: which baseline converges, and in what sense.

The policy is a softmax over n answers, the preference model an exact skew table A of log-odds, and an
iteration the closed form of the loss' minimum: log pi_{t+1} = log pi_t + target - log Z, the target from
`preference_targets` with the whole answer set as baseline, weighted by the policy's probabilities. So beta is
1 / eta and there is no sampling noise.

Exploitability is max_y (A pi)_y: what the best answer wins against pi, 0 exactly at the Nash policy.

Run: python -m pytest tests/gpo/test_exact_games.py
Shapes: S starts, n answers (both K and M of the table).
"""

import pytest
import torch
from torch import Tensor

from gpo.targets import optimistic_weights, preference_targets

ETA = 0.2
STEPS = 4_000
SKEWED = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]]
UNIFORM = [1 / 3, 1 / 3, 1 / 3]

# The Nash policy of the weighted game is (3, 1, 2) / 6, so its uniform start is not solved already.
WEIGHTED = torch.tensor([[0, 2, -1], [-2, 0, 3], [1, -3, 0]], dtype=torch.float64) / 3
PLAIN = torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=torch.float64)
GAMES = [
    pytest.param(WEIGHTED, [UNIFORM, *SKEWED], [3 / 6, 1 / 6, 2 / 6], id="weighted"),
    pytest.param(PLAIN, SKEWED, UNIFORM, id="plain"),
]


def exploitability(table: Tensor, policy: Tensor) -> Tensor:
    return (policy @ table.T).amax(-1)


def target_against(table: Tensor, now_SM: Tensor, before_SM: Tensor, baseline: str) -> Tensor:
    """Targets `[S, n]` of all answers against the current policy, or 2 * current - previous."""
    if baseline == "self":
        score, weight = table, now_SM
    else:
        # The weights that `optimistic_weights` gives to samples, in expectation: 2 * pi_t, then -pi_{t-1}.
        score, weight = torch.cat([table, table], dim=1), torch.cat([2 * now_SM, -before_SM], dim=1)
    batch = score.expand(len(now_SM), *score.shape)
    return preference_targets(batch, method="gpo", tau=1.0, beta=1 / ETA, weight_M=weight)


def play(table: Tensor, starts: list[list[float]], baseline: str) -> Tensor:
    """Policies `[STEPS + 1, S, n]`, the start first; the policy before the start is the start."""
    policies = [torch.tensor(starts, dtype=torch.float64)]
    log_policy = policies[0].log()
    for step in range(STEPS):
        target = target_against(table, policies[-1], policies[max(step - 1, 0)], baseline)
        log_policy = log_policy + target
        # Not log_softmax: its thread barrier costs 15 ms a call here when all cores are busy.
        log_policy = log_policy - log_policy.logsumexp(-1, keepdim=True)
        policies.append(log_policy.exp())
    return torch.stack(policies)


@pytest.mark.parametrize(("table", "starts", "nash"), GAMES)
def test_self_play_converges_on_average_while_the_last_policy_circles(
    table: Tensor, starts: list[list[float]], nash: list[float]
) -> None:
    policies = play(table, starts, "self")
    assert (exploitability(table, policies.mean(0)) < 0.02).all()
    # Not one unlucky moment: in the last tenth no policy comes near, and each game gets worse than its start.
    recent = exploitability(table, policies[-STEPS // 10 :])
    assert (recent.amin(0) > 0.1).all()
    assert (recent.amax(0) > exploitability(table, policies[0])).all()


@pytest.mark.parametrize(("table", "starts", "nash"), GAMES)
def test_optimistic_play_brings_the_last_policy_to_the_nash_policy(
    table: Tensor, starts: list[list[float]], nash: list[float]
) -> None:
    last = play(table, starts, "optimistic")[-1]
    assert (exploitability(table, last) < 0.02).all()
    torch.testing.assert_close(last, torch.tensor([nash], dtype=torch.float64).expand_as(last), rtol=0, atol=1e-3)


def test_optimistic_weights_are_twice_the_samples_minus_the_previous_answers() -> None:
    weight = optimistic_weights(4, torch.tensor([1.0, 3.0]))
    assert weight.tolist() == [0.5, 0.5, 0.5, 0.5, -0.25, -0.75]


def test_a_game_with_a_best_answer_is_won_by_self_play_alone() -> None:
    reward = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    table = reward[:, None] - reward
    last = play(table, [UNIFORM], "self")[-1]
    assert exploitability(table, last).item() < 1e-6
    assert last.argmax().item() == 2
