"""Accuracy and cycles in the labels of pairs.

Run: python -m pytest tests/reward/test_pair_metrics.py
"""

import itertools

import torch

from reward.pair_metrics import find_cycles, split_metrics
from tests.reward.training_data import pair


def test_cycles_are_found_within_groups_and_contradictions_decide_nothing() -> None:
    tournament = [pair("p", a, b) for a, b in itertools.combinations("wxyz", 2)]
    assert (find_cycles(tournament).cyclic_triples, find_cycles(tournament).decided_triples) == (0, 4)
    last = pair("p", "z", "w")
    cyclic = [item for item in tournament if item.rejected != last.chosen or item.chosen != last.rejected]
    assert (find_cycles([*cyclic, last]).cyclic_triples, len(find_cycles([*cyclic, last]).edges)) == (2, 6)
    undecided = find_cycles([*tournament, last])  # w over z and z over w
    assert (undecided.cyclic_triples, undecided.decided_triples) == (0, 2)
    reversed_label = pair("p", "w", "z", target_prob=0.1)
    assert find_cycles([*cyclic, reversed_label]).cyclic_triples == 2
    split = [pair("p", "a", "b"), pair("p", "b", "c"), pair("p", "c", "a", group="elsewhere")]
    assert find_cycles(split).decided_triples == 0


def test_a_score_of_zero_is_half_right() -> None:
    cycle = [pair("p", a, b) for a, b in ("xy", "yz", "zx")]
    metrics = split_metrics(cycle, torch.tensor([1.0, 0.0, -1.0]))
    assert metrics.accuracy == metrics.cyclic_accuracy == 0.5
    assert split_metrics([], torch.zeros(0)).accuracy is None
