"""How well scores agree with labelled pairs: overall, and on the cycles that no scalar reward can follow.
What it is: accuracies from one score a pair, and the interval of one; cycles are found in the labels of the pairs of
one group. What it is not: it computes no scores.

Shape suffixes: N pairs, K different answers in one group. A score is chosen over rejected.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reward.pairs import LoadedPairs, PreferencePair
from reward.preference import cyclic_triples

Pairs = LoadedPairs | Sequence[PreferencePair]


@dataclass(frozen=True)
class SplitMetrics:
    """Accuracies count a score of exactly 0 as one half; None where there is nothing to count."""

    pairs: int
    groups: int
    duplicates: int | None
    """Rows left out when the file was read; None for pairs that come from elsewhere. So `ties`."""
    ties: int | None
    accuracy: float | None
    """Over pairs with a label, which is all but those with a target_prob of one half."""
    cyclic_accuracy: float | None
    """Over the three edges of every cyclic triple; a scalar reward reaches at most 2/3."""
    cyclic_triples: int
    decided_triples: int


@dataclass
class Cycles:
    """The cyclic triples in the labels; an edge lies in as many triples as name it."""

    edges: list[tuple[int, int]] = field(default_factory=list)
    """(number of the pair, +1 if its chosen answer is the winner of the edge, else -1); three a triple."""
    decided_triples: int = 0

    @property
    def cyclic_triples(self) -> int:
        return len(self.edges) // 3


def pair_list(pairs: Pairs) -> Sequence[PreferencePair]:
    """The pairs without the counts of their file."""
    return pairs.pairs if isinstance(pairs, LoadedPairs) else pairs


def split_metrics(pairs: Pairs, score_N: Tensor) -> SplitMetrics:
    """Accuracy and cyclic accuracy of one score a pair."""
    listed, file = pair_list(pairs), pairs if isinstance(pairs, LoadedPairs) else None
    correct = correct_pairs(listed, score_N)
    cycles = find_cycles(listed)
    scores = score_N.tolist()
    return SplitMetrics(
        pairs=len(listed),
        groups=len({pair.group for pair in listed}),
        duplicates=file.duplicates if file else None,
        ties=file.ties if file else None,
        accuracy=_mean([value for value, pair in zip(correct, listed, strict=True) if pair.label]),
        cyclic_accuracy=_mean([_half_step(sign * scores[number]) for number, sign in cycles.edges]),
        cyclic_triples=cycles.cyclic_triples,
        decided_triples=cycles.decided_triples,
    )


def correct_pairs(pairs: Sequence[PreferencePair], score_N: Tensor) -> list[float]:
    """1.0 where score and label agree, 0.0 where they do not, 0.5 where either is undecided."""
    return [_half_step(pair.label * score) for pair, score in zip(pairs, score_N.tolist(), strict=True)]


def find_cycles(pairs: Sequence[PreferencePair]) -> Cycles:
    """All triples of answers, by their last message, within each group; contradicting labels cancel."""
    members: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        members.setdefault(pair.group, []).append(number)
    cycles = Cycles()
    for numbers in members.values():
        _add_cycles(pairs, numbers, cycles)
    return cycles


def _add_cycles(pairs: Sequence[PreferencePair], numbers: Sequence[int], cycles: Cycles) -> None:
    answers: dict[str, int] = {}
    label_of: dict[tuple[int, int], int] = {}
    pair_of: dict[tuple[int, int], tuple[int, int]] = {}
    for number in numbers:
        ends = (pairs[number].chosen, pairs[number].rejected)
        i, j = (answers.setdefault(messages[-1]["content"], len(answers)) for messages in ends)
        for edge, sign in (((i, j), 1), ((j, i), -1)):
            label_of[edge] = label_of.get(edge, 0) + sign * pairs[number].label
            pair_of[edge] = (number, sign)
    table_KK = torch.zeros(len(answers), len(answers))
    for edge, label in label_of.items():
        table_KK[edge] = label
    for i, j, k in cyclic_triples(table_KK):
        cycles.edges += [pair_of[i, j], pair_of[j, k], pair_of[k, i]]
    # Each triangle of decided pairs is walked six times: from each corner, both ways round.
    decided_KK = (table_KK != 0).double()
    cycles.decided_triples += round(float((decided_KK @ decided_KK @ decided_KK).trace()) / 6)


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval in [0, 1] of a share of `count` independent trials (Wilson's score interval)."""
    if count == 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At the ends the two terms are equal up to rounding.
    return max(0.0, middle - half) if share > 0 else 0.0, min(1.0, middle + half) if share < 1 else 1.0


def _half_step(score: float) -> float:
    return 0.5 * ((score > 0) - (score < 0) + 1)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
