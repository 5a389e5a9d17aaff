"""Cycles among the answers of one prompt, for people to look at. numpy only, so that reports stay light.

Shape: K answers; a table [K, K] of scores where entry [i, j] is what answer i scores against j.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Cycle(NamedTuple):
    """Answers of which each beats the next, and the last the first; the smallest index comes first."""

    answers: tuple[int, int, int]
    weakest: float
    """The smallest of the three margins, in the table's own unit: how sure the cycle is."""


def strongest_cycle(table_KK: ArrayLike) -> Cycle | None:
    """The cycle whose weakest preference is strongest; None where there is none, or the table is not square.

    A margin is half the difference of the two entries, so that a tie is no preference.
    """
    score_KK = np.asarray(table_KK, dtype=np.float64)
    if score_KK.ndim != 2 or score_KK.shape[0] != score_KK.shape[1] or len(score_KK) < 3:
        return None
    margin_KK = (score_KK - score_KK.T) / 2
    weakest_KKK = np.minimum(
        np.minimum(margin_KK[:, :, None], margin_KK[None, :, :]), margin_KK.T[:, None, :]
    )  # [i, j, k]: i over j, j over k, k over i
    place = int(np.argmax(weakest_KKK))
    if not weakest_KKK.flat[place] > 0:
        return None
    i, j, k = (int(index) for index in np.unravel_index(place, weakest_KKK.shape))
    turned = {i: (i, j, k), j: (j, k, i), k: (k, i, j)}[min(i, j, k)]
    return Cycle(turned, float(weakest_KKK.flat[place]))
