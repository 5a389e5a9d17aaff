"""How well any scalar reward can do on labelled pairs, computed exactly.
What it is: pure; the best order of the answers of each group, found by dynamic programming over the subsets of every
strongly connected part. A scalar with ties, each counted as half right, is never better than one without. What it is
not: it trains nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from reward.pairs import PreferencePair

LARGEST_PART = 20
"""Answers of one strongly connected part: memory and time grow with 2 to this power."""


def scalar_ceiling(pairs: Sequence[PreferencePair]) -> float | None:
    """Largest pair accuracy in [0, 1] of a scalar reward; None when a part is too large to be sure.

    Pairs without a label do not count.
    """
    groups: dict[str, dict[tuple[str, str], int]] = {}
    for pair in pairs:
        ends = (pair.chosen[-1]["content"], pair.rejected[-1]["content"])
        if pair.label:
            edge = ends if pair.label > 0 else ends[::-1]
            wins = groups.setdefault(pair.group, {})
            wins[edge] = wins.get(edge, 0) + 1
    total = sum(sum(wins.values()) for wins in groups.values())
    best = [best_order_wins(wins) for wins in groups.values()]
    if total == 0 or any(one is None for one in best):
        return None
    return sum(one for one in best if one is not None) / total


def best_order_wins(wins: Mapping[tuple[str, str], int]) -> int | None:
    """Most wins (winner, loser) that one order of the answers can respect; None when a part is too large."""
    names = sorted({name for edge in wins for name in edge})
    part_of = _parts(names, wins)
    inside: dict[int, dict[tuple[str, str], int]] = {}
    kept = 0
    for (winner, loser), count in wins.items():
        if part_of[winner] == part_of[loser]:
            inside.setdefault(part_of[winner], {})[winner, loser] = count
        else:
            kept += count  # Parts among themselves have an order that respects all of these.
    for edges in inside.values():
        members = sorted({name for edge in edges for name in edge})
        if len(members) > LARGEST_PART:
            return None
        kept += _best_inside(members, edges)
    return kept


def _best_inside(names: Sequence[str], wins: Mapping[tuple[str, str], int]) -> int:
    """Over all orders: best[S] is the most wins within S when S are the first places."""
    number = {name: place for place, name in enumerate(names)}
    beats = np.zeros((len(names), len(names)), dtype=np.int64)
    for (winner, loser), count in wins.items():
        beats[number[winner], number[loser]] = count
    subsets = np.arange(1 << len(names))
    best = np.zeros(len(subsets), dtype=np.int64)
    sizes = np.array([bin(subset).count("1") for subset in subsets])
    before = np.zeros((len(names), len(subsets)), dtype=np.int64)
    for place in range(len(names)):
        has = (subsets >> place & 1).astype(bool)
        before[:, has] += beats[place][:, None]
    for size in range(1, len(names) + 1):
        of_size = subsets[sizes == size]
        values = np.zeros(len(of_size), dtype=np.int64)
        for last in range(len(names)):
            has = (of_size >> last & 1).astype(bool)
            rest = of_size[has] & ~(1 << last)
            values[has] = np.maximum(values[has], best[rest] + before[last, rest])
        best[of_size] = values
    return int(best[-1])


def _parts(names: Sequence[str], wins: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Number of each name's strongly connected part: who reach each other."""
    number = {name: place for place, name in enumerate(names)}
    reach = np.eye(len(names), dtype=bool)
    for winner, loser in wins:
        reach[number[winner], number[loser]] = True
    for middle in range(len(names)):
        reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1]
    mutual = reach & reach.T
    return {name: int(mutual[place].argmax()) for place, name in enumerate(names)}
