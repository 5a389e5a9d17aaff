"""Metrics of evaluation: calibration, entropy, cycles in what the model prefers, sources apart.

Run: python -m pytest tests/reward/test_pair_evaluation.py
"""

import math
from array import array

import pytest
import torch

from reward.encoded_pairs import EncodedPair
from reward.pair_evaluation import calibration_error, count_triples, evaluation_metrics, gate_entropy
from reward.pairs import PreferencePair


def pair(first: int, second: int, source: str = "", target: float = 1.0) -> EncodedPair:
    ask = {"role": "user", "content": "q"}
    talks = [[ask, {"role": "assistant", "content": str(number)}] for number in (first, second)]
    rows = (array("i", [first]), array("i", [second]))
    return EncodedPair(rows, (0, 0), 0, PreferencePair(*talks, source=source, target_prob=target))


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    certain = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert calibration_error(certain, torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.5)
    even = torch.tensor([0.75, 0.75, 0.75, 0.75])
    assert calibration_error(even, torch.tensor([1.0, 1.0, 1.0, 0.0])) == pytest.approx(0.0, abs=1e-9)
    prob, label = torch.rand(50, dtype=torch.float64), (torch.rand(50) > 0.5).double()
    assert calibration_error(prob, label) == pytest.approx(calibration_error(1 - prob, 1 - label))
    assert math.isnan(calibration_error(torch.zeros(0), torch.zeros(0)))


def test_entropy_is_that_of_the_shares() -> None:
    found = gate_entropy(torch.tensor([[0.5, 0.5], [2.0, 2.0], [1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([math.log(2), math.log(2), 0.0]))


def test_cycles_are_counted_in_the_models_own_table() -> None:
    angles = torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
    v = torch.stack([angles.cos(), angles.sin()], dim=-1)
    pairs = [pair(0, 1), pair(1, 2), pair(2, 0)]
    both = torch.stack([torch.stack([v[0], v[1]]), torch.stack([v[1], v[2]]), torch.stack([v[2], v[0]])])
    assert count_triples(pairs, both, None) == (1, 1)
    scalar = torch.tensor([[[0.0], [1.0]], [[1.0], [2.0]], [[2.0], [0.0]]])
    assert count_triples(pairs, scalar, None) == (0, 1)
    assert count_triples(pairs[:1], both[:1], None) == (0, 0)


def test_sources_are_told_apart_and_sum_to_the_whole() -> None:
    pairs = [pair(0, 1, "a"), pair(2, 3, "a"), pair(4, 5, "b"), pair(6, 7, "b", 0.2)]
    score = torch.tensor([0.3, -0.1, 0.2, -0.4], dtype=torch.float64)
    value = torch.stack([score, -score, *torch.zeros(4, 4, dtype=torch.float64)], dim=-1)
    found = evaluation_metrics(pairs, value, 0.1)
    assert found["accuracy"] == 0.75 and found["a/accuracy"] == 0.5 and found["b/accuracy"] == 1.0
    assert found["loss"] == pytest.approx((found["a/loss"] + found["b/loss"]) / 2)
    assert found["mean_abs_score"] == pytest.approx(0.25) and "cyclic_share" not in found
