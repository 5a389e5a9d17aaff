"""Rows of a file in a message: all of them, few or many, in as few words as they can be said."""

from collections.abc import Iterable


def named_rows(numbers: Iterable[int]) -> str:
    """`row 3`, or `rows 3, 17-40`; each number once, in order. Raises ValueError without any."""
    first, *rest = sorted(set(numbers))
    runs = [[first, first]]
    for number in rest:
        if number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
    return f"row{'s' if rest else ''} {told}"
