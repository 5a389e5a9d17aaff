"""The preference mathematics against slow double loops and properties that hold for any input."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward.errors import RewardInputError
from reward.preference import (
    cyclic_share,
    cyclic_triples,
    intransitivity,
    preference_probability,
    preference_score,
    preference_table,
    rank,
    win_rate_against,
)

SIZES = st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 4, 6, 8]), st.integers(0, 10_000))


def draw(size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
    count, width, seed = size
    generator = torch.Generator().manual_seed(seed)
    emb_KD = torch.randn(count, width, generator=generator, dtype=dtype)
    if width == 1 or seed % 2:
        return emb_KD, None
    return emb_KD, torch.softmax(torch.randn(width // 2, generator=generator, dtype=dtype), 0)


def slow_score(one: list[float], two: list[float], gate: list[float] | None) -> float:
    if len(one) == 1:
        return one[0] - two[0]
    total = 0.0
    for block in range(len(one) // 2):
        weight = 1.0 if gate is None else gate[block]
        total += weight * (one[2 * block] * two[2 * block + 1] - one[2 * block + 1] * two[2 * block])
    return total


@given(SIZES, st.integers(1, 5))
def test_tables_equal_a_slow_double_loop(size: tuple[int, int, int], others: int) -> None:
    emb_KD, gate_L = draw(size, torch.float64)
    other_MD, _ = draw((others, size[1], size[2] + 1), torch.float64)
    gate = None if gate_L is None else gate_L.tolist()
    for against in (emb_KD, other_MD):
        slow = [[slow_score(one, two, gate) for two in against.tolist()] for one in emb_KD.tolist()]
        table = preference_table(emb_KD, None if against is emb_KD else against, gate_L)
        torch.testing.assert_close(table, torch.tensor(slow, dtype=torch.float64))


@given(SIZES, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_table_against_itself_is_skew_symmetric_to_the_last_bit(
    size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    emb_KD, gate_L = draw(size, dtype)
    table_KK = preference_table(emb_KD, gate_L=gate_L)
    assert table_KK.dtype == dtype
    assert torch.equal(table_KK, -table_KK.T)


@given(SIZES)
def test_permuting_answers_permutes_the_table(size: tuple[int, int, int]) -> None:
    emb_KD, gate_L = draw(size, torch.float64)
    order = torch.randperm(len(emb_KD), generator=torch.Generator().manual_seed(size[2]))
    permuted = preference_table(emb_KD[order], gate_L=gate_L)
    torch.testing.assert_close(permuted, preference_table(emb_KD, gate_L=gate_L)[order][:, order])


@given(SIZES)
def test_two_answers_make_the_pair(size: tuple[int, int, int]) -> None:
    emb_2D, gate_L = draw((2, *size[1:]), torch.float64)
    score = preference_score(emb_2D[:1], emb_2D[1:], None if gate_L is None else gate_L[None])
    torch.testing.assert_close(preference_table(emb_2D, gate_L=gate_L)[0, 1], score[0])
    assert torch.equal(score, -preference_score(emb_2D[1:], emb_2D[:1], None if gate_L is None else gate_L[None]))


@given(SIZES)
def test_probabilities_of_both_orders_sum_to_one(size: tuple[int, int, int]) -> None:
    emb_KD, gate_L = draw(size, torch.float64)
    prob_KK = preference_probability(preference_table(emb_KD, gate_L=gate_L), 0.1)
    torch.testing.assert_close(prob_KK + prob_KK.T, torch.ones_like(prob_KK))


def slow_cycles(table: list[list[float]]) -> tuple[set[frozenset[int]], int]:
    cycles, decided = set(), 0
    for i in range(len(table)):
        for j in range(i + 1, len(table)):
            for k in range(j + 1, len(table)):
                if 0 in (table[i][j], table[j][k], table[k][i]):
                    continue
                decided += 1
                wins = [table[i][j] > 0, table[j][k] > 0, table[k][i] > 0]
                if all(wins) or not any(wins):
                    cycles.add(frozenset((i, j, k)))
    return cycles, decided


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_cyclic_triples_equal_a_slow_triple_loop(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    upper = torch.randint(-1, 2, (count, count), generator=generator).float().triu(1)
    table_KK = upper - upper.T
    slow, decided = slow_cycles(table_KK.tolist())
    found = cyclic_triples(table_KK)
    assert {frozenset(triple) for triple in found} == slow and len(found) == len(slow)
    for i, j, k in found:
        assert i < min(j, k) and table_KK[i, j] > 0 and table_KK[j, k] > 0 and table_KK[k, i] > 0
    share = cyclic_share(table_KK)
    assert math.isnan(share) if decided == 0 else share == pytest.approx(len(slow) / decided)


def test_rock_paper_scissors_is_all_cycle_and_a_scalar_table_has_none() -> None:
    angle = torch.arange(3) * 2 * math.pi / 3
    circle_KK = preference_table(torch.stack([angle.cos(), angle.sin()], -1))
    assert cyclic_triples(circle_KK) == [(0, 1, 2)] and cyclic_share(circle_KK) == 1.0
    assert intransitivity(circle_KK) == pytest.approx(1.0)
    scalar_KK = preference_table(torch.tensor([[3.0], [1.0], [2.0], [-5.0]]))
    assert cyclic_share(scalar_KK) == 0.0 and intransitivity(scalar_KK) == pytest.approx(0.0, abs=1e-12)
    assert rank(scalar_KK) == [0, 2, 1, 3]


@given(SIZES)
def test_intransitivity_is_the_residual_of_a_least_squares_fit(size: tuple[int, int, int]) -> None:
    emb_KD, gate_L = draw((size[0] + 1, *size[1:]), torch.float64)
    table_KK = preference_table(emb_KD, gate_L=gate_L)
    count = len(table_KK)
    design = torch.eye(count, dtype=torch.float64)
    design = (design[:, None] - design[None, :]).reshape(count * count, count)
    fit = design @ torch.linalg.lstsq(design, table_KK.reshape(-1, 1), driver="gelsd").solution
    share = (table_KK.reshape(-1, 1) - fit).square().sum() / table_KK.square().sum()
    assert intransitivity(table_KK) == pytest.approx(float(share), abs=1e-9)


def test_ties_leave_triples_undecided_and_keep_their_order() -> None:
    zeros_KK = torch.zeros(4, 4)
    assert cyclic_triples(zeros_KK) == [] and math.isnan(cyclic_share(zeros_KK))
    assert rank(zeros_KK) == [0, 1, 2, 3] and intransitivity(zeros_KK) == 0.0


def test_win_rate_is_the_mean_probability_against_the_pool() -> None:
    score_KM = torch.tensor([[0.0, 0.0], [100.0, -100.0], [100.0, 100.0]])
    assert win_rate_against(score_KM, 0.1).tolist() == [0.5, 0.5, 1.0]


def test_shapes_that_do_not_fit_are_refused_with_the_numbers_found() -> None:
    with pytest.raises(RewardInputError, match="widths 4 and 2"):
        preference_table(torch.zeros(2, 4), torch.zeros(2, 2))
    with pytest.raises(RewardInputError, match="even number"):
        preference_score(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(RewardInputError, match="expected one weight a block, 2"):
        preference_table(torch.zeros(2, 4), gate_L=torch.ones(3))
    with pytest.raises(RewardInputError, match=r"expected \[K, K\]"):
        rank(torch.zeros(2, 3))
    with pytest.raises(RewardInputError, match="above 0"):
        preference_probability(torch.zeros(2), 0.0)


def test_importing_the_mathematics_loads_no_transformers() -> None:
    program = "import sys, reward, reward.preference, reward.losses; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
