"""Metrics of a model on labelled pairs: accuracy, calibration, cycles, and how its parts are used.
What it is: pure functions of one number or vector a pair, over all pairs and by source. What it is not: it runs no
model and gathers nothing from other workers.

Shape suffixes: N pairs, K answers of a group, D embedding width, L = D / 2 blocks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reward.encoded_pairs import EncodedPair
from reward.pair_metrics import split_metrics, wilson_interval
from reward.pair_model import PairOutput
from reward.pairs import PreferencePair
from reward.preference import cyclic_triples, preference_table

CALIBRATION_BINS = 10
LARGEST_TABLE = 64
"""Answers of a group beyond which its triples are not counted: there are K * (K - 1) * (K - 2) / 6."""
COLUMNS = ("score", "loss", "gate_entropy", "norm", "cyclic", "triples")
"""One row a pair; the triples of a group stand at its first pair."""


class TripleCount(NamedTuple):
    """Cycles in what the model itself prefers."""

    cyclic: int
    decided: int


def pair_values(output: PairOutput, pairs: Sequence[EncodedPair], loss_N: Tensor) -> Tensor:
    """One row of COLUMNS for each of the pairs that gave this output; groups must be whole."""
    gate_NL = output.gate_NL
    entropy_N = torch.zeros_like(output.score_N) if gate_NL is None else gate_entropy(gate_NL)
    table = torch.stack([output.score_N, loss_N, entropy_N, output.norm_N2.mean(-1)], dim=-1).double()
    triples = torch.zeros(len(table), 2, dtype=torch.float64)
    for places in _group_places(pairs):
        gate_L = None if gate_NL is None else gate_NL[places].mean(0)
        counted = count_triples([pairs[place] for place in places], output.v_N2D[places], gate_L)
        triples[places[0]] = torch.tensor([counted.cyclic, counted.decided])
    return torch.cat([table.cpu(), triples], dim=-1)


def _group_places(pairs: Sequence[EncodedPair]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.pair.group, []).append(place)
    return [found for found in places.values() if len(found) > 1]


def count_triples(pairs: Sequence[EncodedPair], v_N2D: Tensor, gate_L: Tensor | None) -> TripleCount:
    """Cyclic and decided triples in the model's own table of a group's different answers."""
    emb: dict[tuple[int, ...], Tensor] = {}
    for pair, v_2D in zip(pairs, v_N2D, strict=True):
        for side in (0, 1):
            emb.setdefault(pair.row(side), v_2D[side])
    if not 3 <= len(emb) <= LARGEST_TABLE:
        return TripleCount(0, 0)
    table_KK = preference_table(torch.stack(list(emb.values())), gate_L=gate_L)
    decided_KK = (table_KK != 0).double()
    decided = round(float((decided_KK @ decided_KK @ decided_KK).trace()) / 6)
    return TripleCount(len(cyclic_triples(table_KK)), decided)


def gate_entropy(gate_NL: Tensor) -> Tensor:
    """Nats; log(L) when every block counts the same. Gates of any sum count as shares."""
    share_NL = gate_NL / gate_NL.sum(-1, keepdim=True)
    return -(share_NL * share_NL.clamp(min=1e-30).log()).sum(-1)


def calibration_error(prob_N: Tensor, label_N: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error in [0, 0.5]: mean gap of confidence and accuracy over bins of the confidence.

    `prob_N` is the probability that the first answer wins, `label_N` whether it does (in [0, 1]). Confidence is that
    of the answer which the model prefers, so swapping the answers changes nothing.
    """
    if len(prob_N) == 0:
        return math.nan
    prefers_first_N = prob_N >= 0.5
    confidence_N = torch.where(prefers_first_N, prob_N, 1 - prob_N).double()
    right_N = torch.where(prefers_first_N, label_N, 1 - label_N).double()
    bin_N = ((confidence_N - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_N, confidence_N - right_N)
    return float(gaps.abs().sum() / len(prob_N))


def evaluation_metrics(pairs: Sequence[EncodedPair], value_N6: Tensor, tau: float) -> dict[str, float]:
    """Every metric over all pairs, then of each source where there are several."""
    found = _metrics_of(pairs, value_N6, tau)
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.pair.source, []).append(place)
    if len(places) > 1:
        for source, chosen in places.items():
            part = _metrics_of([pairs[place] for place in chosen], value_N6[chosen], tau)
            found |= {f"{source}/{name}": value for name, value in part.items()}
    return found


def reported(metrics: Mapping[str, float], pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Metrics as training_metrics.json has them: None where nothing is measured, and the 95 % interval of the accuracy.

    The interval takes pairs as independent.
    """
    found: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    labelled = sum(pair.label != 0 for pair in pairs)
    return found | {"accuracy_ci95": list(wilson_interval(found["accuracy"], labelled))} if labelled else found


def _metrics_of(pairs: Sequence[EncodedPair], value_N6: Tensor, tau: float) -> dict[str, float]:
    column = dict(zip(COLUMNS, value_N6.double().unbind(-1), strict=True))
    split = split_metrics([pair.pair for pair in pairs], column["score"])
    target_N = torch.tensor([pair.pair.target_prob for pair in pairs], dtype=torch.float64)
    found = {
        "pairs": float(len(pairs)),
        "accuracy": _number(split.accuracy),
        "loss": float(column["loss"].mean()),
        "calibration_error": calibration_error(torch.sigmoid(column["score"] / tau), target_N),
        "mean_abs_score": float(column["score"].abs().mean()),
        "embedding_norm": float(column["norm"].mean()),
        "gate_entropy": float(column["gate_entropy"].mean()),
        "tau": tau,
    }
    if float(column["triples"].sum()):
        found["cyclic_share"] = float(column["cyclic"].sum() / column["triples"].sum())
    if split.cyclic_accuracy is not None:
        found["cyclic_accuracy"] = split.cyclic_accuracy
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
