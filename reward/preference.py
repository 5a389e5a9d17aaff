"""Pure preference mathematics: embeddings in, scores, tables, probabilities and measures of cycles out.
No configuration, no I/O, no globals; dtype in = dtype out. A score s is the raw <R v_i, v_j>, positive when
i is preferred; s / tau are log-odds and sigmoid(s / tau) is the probability. It does not turn scores into
training targets.

Shape suffixes: N pairs, K answers to one prompt, M answers of a pool, D embedding width, L = D / 2 blocks.
D = 1 is a Bradley-Terry reward, whose score is the difference of the two rewards.
"""

import torch
from torch import Tensor

from reward.errors import RewardInputError


def preference_score(emb_ND: Tensor, other_ND: Tensor, gate_NL: Tensor | None = None) -> Tensor:
    """Score_N of each row over the same row of `other_ND`; swapping the two flips the sign exactly."""
    _check_widths(emb_ND, other_ND, gate_NL)
    if emb_ND.shape[-1] == 1:
        return (emb_ND - other_ND).squeeze(-1)
    block_NL = emb_ND[..., 0::2] * other_ND[..., 1::2] - emb_ND[..., 1::2] * other_ND[..., 0::2]
    if gate_NL is not None:
        block_NL = gate_NL.to(block_NL.dtype) * block_NL
    return block_NL.sum(-1)


def preference_table(emb_KD: Tensor, other_MD: Tensor | None = None, gate_L: Tensor | None = None) -> Tensor:
    """Score_KM of answer k over answer m; without `other_MD` against itself, exactly skew-symmetric."""
    against_MD = emb_KD if other_MD is None else other_MD
    _check_widths(emb_KD, against_MD, gate_L)
    if emb_KD.shape[-1] == 1:
        return emb_KD - against_MD.transpose(-1, -2)
    first_KL, second_KL = emb_KD[..., 0::2], emb_KD[..., 1::2]
    if gate_L is not None:
        first_KL, second_KL = gate_L.to(emb_KD.dtype) * first_KL, gate_L.to(emb_KD.dtype) * second_KL
    half_KM = first_KL @ against_MD[..., 1::2].transpose(-1, -2)
    if other_MD is None:
        # The other half is mathematically the transpose; taking it literally makes the table exactly skew.
        return half_KM - half_KM.transpose(-1, -2)
    return half_KM - second_KL @ against_MD[..., 0::2].transpose(-1, -2)


def preference_probability(score: Tensor, tau: float | Tensor) -> Tensor:
    """P(preferred) = sigmoid(score / tau)."""
    if not bool(torch.as_tensor(tau > 0).all()):
        raise RewardInputError(f"tau is {tau}, expected a number above 0: it divides the score")
    return torch.sigmoid(score / tau)


def win_rate_against(score_KM: Tensor, tau: float | Tensor) -> Tensor:
    """WinRate_K: the mean probability with which each answer is preferred to the M answers of a pool."""
    if score_KM.shape[-1] == 0:
        raise RewardInputError("the pool is empty (M = 0), expected at least one answer to compare with")
    return preference_probability(score_KM, tau).mean(-1)


def rank(table_KK: Tensor) -> list[int]:
    """Indices of the answers from best to worst by mean score; equal means keep their order of entry."""
    _check_square(table_KK)
    order_K = torch.sort(table_KK.mean(-1), descending=True, stable=True).indices
    return [int(index) for index in order_K]


def cyclic_triples(table_KK: Tensor) -> list[tuple[int, int, int]]:
    """Every (i, j, k) with i over j over k over i, each cycle once, its smallest index first."""
    triple_T3, wins_T3 = _decided_triples(table_KK)
    forward_T, backward_T = wins_T3.all(-1), (~wins_T3).all(-1)
    cycles = [(int(i), int(j), int(k)) for i, j, k in triple_T3[forward_T]]
    cycles += [(int(i), int(k), int(j)) for i, j, k in triple_T3[backward_T]]
    return sorted(cycles)


def cyclic_share(table_KK: Tensor) -> float:
    """Share of the decided triples that are cycles; a tie (score 0) leaves its triples undecided.

    Without any decided triple there is nothing to share out and the answer is nan.
    """
    _, wins_T3 = _decided_triples(table_KK)
    if len(wins_T3) == 0:
        return float("nan")
    cyclic_T = wins_T3.all(-1) | (~wins_T3).all(-1)
    return float(cyclic_T.double().mean())


def intransitivity(table_KK: Tensor) -> float:
    """Share in [0, 1] of the squared table mass that no scalar reward explains; 0 for a table of zeros.

    The best scalar in the least-squares sense is the row mean (every pair is compared), so what is left after
    subtracting r_i - r_j is pure cycle. A table that is not quite skew counts with its skew-symmetric part.
    """
    _check_square(table_KK)
    skew_KK = (table_KK - table_KK.transpose(0, 1)).double() / 2
    mass = float(skew_KK.square().sum())
    if mass == 0.0:
        return 0.0
    reward_K = skew_KK.mean(1)
    residual_KK = skew_KK - (reward_K[:, None] - reward_K[None, :])
    return float(residual_KK.square().sum()) / mass


def _decided_triples(table_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Triples i < j < k without a tie, and for each whether i beats j, j beats k, k beats i."""
    _check_square(table_KK)
    index_K = torch.arange(table_KK.shape[0], device=table_KK.device)
    triple_T3 = torch.combinations(index_K, 3) if len(index_K) >= 3 else index_K.new_zeros(0, 3)
    i_T, j_T, k_T = triple_T3.unbind(-1)
    edge_T3 = torch.stack([table_KK[i_T, j_T], table_KK[j_T, k_T], table_KK[k_T, i_T]], dim=-1)
    decided_T = (edge_T3 != 0).all(-1) & ~edge_T3.isnan().any(-1)
    return triple_T3[decided_T], edge_T3[decided_T] > 0


def _check_square(table_KK: Tensor) -> None:
    if table_KK.dim() != 2 or table_KK.shape[0] != table_KK.shape[1]:
        raise RewardInputError(
            f"the table has shape {tuple(table_KK.shape)}, expected [K, K]: "
            "every answer against every other; build it with preference_table(emb_KD)"
        )


def _check_widths(emb: Tensor, other: Tensor, gate: Tensor | None) -> None:
    width = emb.shape[-1]
    if other.shape[-1] != width:
        raise RewardInputError(
            f"embeddings have widths {width} and {other.shape[-1]}, expected the same: use one model for both"
        )
    if width != 1 and (width == 0 or width % 2):
        raise RewardInputError(f"the embedding width is {width}, expected an even number, or 1 for a reward")
    if gate is not None and (width == 1 or gate.shape[-1] != width // 2):
        wanted = "no gate for D = 1" if width == 1 else f"one weight a block, {width // 2}"
        raise RewardInputError(f"the gate has {gate.shape[-1]} weights for width {width}, expected {wanted}")
