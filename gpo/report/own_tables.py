"""Scores of a prompt's answers against each other, as far as a run's rows tell them. numpy only: reports stay light.

With some baselines the table holds them. With the others it holds scores against the baseline's answers alone, and they
follow from the embeddings by the sum over blocks of `reward.preference.preference_table`: the very scores that the
reward model gives. A judge without embeddings leaves nothing to compute them from.

Shapes: K answers, M columns, D embedding width, L = D / 2 blocks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

OWN_FIRST = ("self", "optimistic")
"""Baselines whose first K columns are the answers themselves."""
NO_OWN_TABLE = (
    "These answers were compared with the baseline alone, and their judge gave no embeddings, so there is no table of "
    "them against each other."
)


def own_columns(table: Sequence[Sequence[float]], baseline: str | None) -> list[list[float]] | None:
    """The [K][K] part of a [K][M] table that compares a prompt's answers with each other; None where there is none."""
    return [list(line[: len(table)]) for line in table] if baseline in OWN_FIRST else None


def from_embeddings(emb_KD: ArrayLike, gate_L: ArrayLike | None) -> NDArray[np.float64]:
    """[K, K] raw scores, exactly skew-symmetric; D = 1 is a Bradley-Terry reward, whose score is the difference."""
    embedding_KD = np.asarray(emb_KD, dtype=np.float64)
    if embedding_KD.shape[1] == 1:
        return embedding_KD - embedding_KD.T
    first_KL, second_KL = embedding_KD[:, 0::2], embedding_KD[:, 1::2]
    if gate_L is not None:
        first_KL = first_KL * np.asarray(gate_L, dtype=np.float64)
    half_KK = first_KL @ second_KL.T
    return half_KK - half_KK.T
