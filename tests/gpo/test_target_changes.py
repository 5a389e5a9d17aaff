"""What is done to the targets of an iteration: scaled together, or pulled to an anchor policy.

Run: python -m pytest tests/gpo/test_target_changes.py
"""

import pytest
import torch

from gpo.targets import pulled_targets, standardising_factor


def test_scaled_targets_have_the_wanted_root_mean_square_and_zeros_stay() -> None:
    target = torch.tensor([3.0, -4.0, 0.0])
    found = target * standardising_factor(target, 2.0)
    assert found.square().mean().sqrt().item() == pytest.approx(2.0)
    assert standardising_factor(torch.zeros(3), 2.0) == 1.0


@pytest.mark.parametrize("nats", [0.0, -1.0, float("inf")])
def test_standardising_to_nothing_is_refused(nats: float) -> None:
    with pytest.raises(ValueError, match="nats is .*; expected a positive finite number"):
        standardising_factor(torch.ones(2), nats)


def test_a_pull_gives_the_minimum_of_the_two_divergences() -> None:
    """Exact on a small set: pi ~ ref^(1 - pull) anchor^pull exp(target) maximises the objective of the docstring."""
    generator = torch.Generator().manual_seed(0)
    ref, anchor = torch.log_softmax(torch.randn(2, 5, dtype=torch.float64, generator=generator), -1)
    target, pull = torch.randn(5, dtype=torch.float64, generator=generator), 0.3
    best = torch.log_softmax(ref + pulled_targets(target, ref, anchor, pull), -1)

    def value(log_policy: torch.Tensor) -> float:
        policy = log_policy.exp()
        near, far = (policy * (log_policy - ref)).sum(), (policy * (log_policy - anchor)).sum()
        return ((policy * target).sum() - (1 - pull) * near - pull * far).item()

    for _ in range(50):
        step = 0.1 * torch.randn(5, dtype=torch.float64, generator=generator)
        assert value(torch.log_softmax(best + step, -1)) < value(best)
    assert torch.equal(pulled_targets(target, ref, anchor, 0.0), target)
    with pytest.raises(ValueError, match="pull is 1.1"):
        pulled_targets(target, ref, anchor, 1.1)
