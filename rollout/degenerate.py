"""Answers that say nothing: empty, a copy of an earlier one, or a loop.

Pure. What is found is recorded with the row; whether such answers are trained on is the run's choice.
"""

from collections.abc import Sequence

KINDS = ("empty", "identical", "loop")
LONGEST_PERIOD = 64
FEWEST_LOOP_TOKENS = 32
FEWEST_REPEATS = 4


def degenerate_kinds(completions: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """For each of the K answers to a prompt, the first kind that fits, or "".

    empty: no text but white space; identical: the same ids as an earlier answer (the first of them is kept); loop: it
    ends in at least FEWEST_REPEATS repeats of one period, FEWEST_LOOP_TOKENS tokens or more.
    """
    seen: set[tuple[int, ...]] = set()
    kinds = []
    for text, ids in zip(completions, completion_ids, strict=True):
        key = tuple(ids)
        if not text.strip():
            kinds.append("empty")
        elif key in seen:
            kinds.append("identical")
        else:
            kinds.append("loop" if ends_in_loop(key) else "")
        seen.add(key)
    return kinds


def ends_in_loop(ids: Sequence[int]) -> bool:
    """Whether the end of an answer repeats one period; one last token (the end token) may stand behind the loop."""
    return _loops(ids) or _loops(ids[:-1])


def _loops(ids: Sequence[int]) -> bool:
    if len(ids) < FEWEST_LOOP_TOKENS:
        return False
    for period in range(1, min(LONGEST_PERIOD, len(ids) // FEWEST_REPEATS) + 1):
        covered = max(FEWEST_LOOP_TOKENS, FEWEST_REPEATS * period)
        if covered <= len(ids) and all(ids[-i] == ids[-i - period] for i in range(1, covered - period + 1)):
            return True
    return False
