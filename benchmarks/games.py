"""Small games with exact expectations: a softmax policy over n answers, preferences from a skew table A, max |A| = 1.

Pure. An iteration is the closed form of the loss' minimum: log pi' = log pi + target - log Z, the target from
`gpo.targets` with the whole answer set as baseline, weighted by the policy's probabilities; beta is 1 / eta. Scores are
log-odds (tau 1). Exploitability is max_y (A pi)_y: what the best answer wins against pi, 0 exactly at the Nash policy.

Shapes: S starts, n answers (both K and M of the table).
"""

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gpo.targets import preference_targets, pulled_targets

Baseline = Literal["self", "optimistic"]

WEIGHTED = torch.tensor([[0, 2, -1], [-2, 0, 3], [1, -3, 0]], dtype=torch.float64) / 3
"""Rock, paper, scissors with weights; its Nash policy is (3, 1, 2) / 6."""
PLAIN = torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=torch.float64)
UNIFORM = [1 / 3, 1 / 3, 1 / 3]
SKEWED = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]]

DAMAGE = {0: 1.0, 1: 2.0, 2: 0.5, 3: 0.0}
"""The chart's codes: how a type takes an attack."""


def type_chart(path: Path) -> Tensor:
    """A [18, 18] of the type chart: the sign of what one type does to another less what it takes from it."""
    chart = json.loads(path.read_text("utf-8"))
    names = sorted(chart)
    taken = [[DAMAGE[chart[other]["damageTaken"][name.capitalize()]] for other in names] for name in names]
    dealt = torch.tensor(taken, dtype=torch.float64)
    return (dealt - dealt.T).sign()


def bradley_terry_table(table: Tensor, steps: int = 2000) -> Tensor:
    """r_i - r_j of Bradley-Terry scores fitted to the probabilities sigmoid(A_ij) of all pairs, by gradient steps."""
    reward = torch.zeros(len(table), dtype=torch.float64)
    wanted = torch.sigmoid(table)
    for _ in range(steps):
        reward = reward + (wanted - torch.sigmoid(reward[:, None] - reward)).mean(1)
    return reward[:, None] - reward


def exploitability(table: Tensor, policy: Tensor) -> Tensor:
    """max_y (A pi)_y for policies [..., n]."""
    return (policy @ table.T).amax(-1)


def target_against(table: Tensor, now_SM: Tensor, before_SM: Tensor, baseline: Baseline, eta: float) -> Tensor:
    """Targets [S, n] of all answers against the current policy, or 2 * current - the one before."""
    if baseline == "self":
        score, weight = table, now_SM
    else:
        # The weights that `optimistic_weights` gives to samples, in expectation: 2 * pi_t, then -pi_{t-1}.
        score, weight = torch.cat([table, table], dim=1), torch.cat([2 * now_SM, -before_SM], dim=1)
    batch = score.expand(len(now_SM), *score.shape)
    return preference_targets(batch, method="gpo", tau=1.0, beta=1 / eta, weight_M=weight)


def play(
    table: Tensor,
    starts: list[list[float]],
    baseline: Baseline,
    eta: float,
    steps: int,
    pull: float = 0.0,
    anchor_every: int = 100,
) -> Tensor:
    """Policies [steps + 1, S, n], the start first; the policy before the start is the start.

    `pull` is the KL pull to an anchor that moves to the current policy every `anchor_every` steps.
    """
    policies = [torch.tensor(starts, dtype=torch.float64)]
    log_policy = anchor = policies[0].log()
    for step in range(steps):
        target = target_against(table, policies[-1], policies[max(step - 1, 0)], baseline, eta)
        if pull:
            anchor = log_policy if step % anchor_every == 0 else anchor
            target = pulled_targets(target, log_policy, anchor, pull)
        log_policy = log_policy + target
        # Not log_softmax: its thread barrier costs 15 ms a call when all cores are busy.
        log_policy = log_policy - log_policy.logsumexp(-1, keepdim=True)
        policies.append(log_policy.exp())
    return torch.stack(policies)


def running_average(policies: Tensor) -> Tensor:
    """Average of the first t policies, for every t."""
    count = torch.arange(1, len(policies) + 1, dtype=policies.dtype)
    return policies.cumsum(0) / count.view(-1, *[1] * (policies.dim() - 1))
