"""A reward model on a benchmark of pairs: a row for each pair, accuracies of subsets and sections.
What it is: scoring in batches and the sums of `reward.rewardbench`, with 95 % intervals. What it is not: it prints and
writes nothing.

Shape suffix: N pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reward.pair_metrics import wilson_interval
from reward.preference import preference_score
from reward.rewardbench import BenchPair, missing_subsets, section_scores
from reward.scorer import PreferenceScorer

PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class PairResult:
    """What the model says about one pair."""

    id: str
    subset: str
    score: float
    """Raw score of chosen over rejected."""
    score_over_tau: float
    correct: float
    """1, 0, or what a tie counts."""
    truncated: bool


def bench_rows(
    scorer: PreferenceScorer,
    pairs: Sequence[BenchPair],
    tie_counts: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[PairResult]:
    """A result for each pair, in order; `tie_counts`: 0.5 (half) or 0 (wrong, as published)."""
    results: list[PairResult] = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        found = scorer.embed([talk for one in part for talk in (one.pair.chosen, one.pair.rejected)])
        gate = None if found.gate_NL is None else found.gate_NL.unflatten(0, (-1, 2)).mean(1)
        score_N = preference_score(found.v_ND[::2], found.v_ND[1::2], gate)
        cut_N = found.truncated_N.unflatten(0, (-1, 2)).any(-1)
        for one, score, cut in zip(part, score_N.tolist(), cut_N.tolist(), strict=True):
            correct = tie_counts if score == 0 else float(score > 0)
            results.append(PairResult(one.id, one.subset, score, score / scorer.tau, correct, cut))
        if progress is not None:
            progress(len(results), len(pairs))
    return results


def bench_summary(results: Sequence[PairResult], tie_counts: float) -> dict[str, Any]:
    """Subsets and sections; `all` is over every pair alike."""
    by_subset: dict[str, list[PairResult]] = {}
    for one in results:
        by_subset.setdefault(one.subset, []).append(one)
    subsets = {name: _share(rows) for name, rows in sorted(by_subset.items())}
    return {
        "format_version": 1,
        "ties_count": tie_counts,
        "subsets": subsets,
        "sections": section_scores({name: one["accuracy"] for name, one in subsets.items()}),
        "missing_subsets": missing_subsets(list(subsets)),
        "all": _share(results),
        "truncated_pairs": sum(one.truncated for one in results),
    }


def _share(rows: Sequence[PairResult]) -> dict[str, Any]:
    accuracy = sum(one.correct for one in rows) / len(rows)
    low, high = wilson_interval(accuracy, len(rows))
    return {
        "pairs": len(rows),
        "ties": sum(one.score == 0 for one in rows),
        "accuracy": accuracy,
        "ci95": [low, high],
    }
