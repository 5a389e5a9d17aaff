"""The loss, its gradients and the log-probabilities of answers, by slow loops and by the published numbers.

Run: python -m pytest tests/gpo/test_loss.py
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpo.loss import dpo_loss, gpo_loss, ipo_loss, sft_loss
from gpo.targets import preference_targets
from gpo.training.log_probs import ChunkedLogProbs, answer_logps

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "gpo_loss.json"
DATA: dict[str, Any] = json.loads(FIXTURE.read_text()) if FIXTURE.exists() else {}
needs_fixture = pytest.mark.skipif(not DATA, reason=f"{FIXTURE} is absent")
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 1e-5)]
"""With what their README says to hold results to, relatively."""
precisions = pytest.mark.parametrize(("dtype", "relative"), PRECISIONS)

seeds = st.integers(0, 2**31)


def random_rows(seed: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy_N, ref_N, target_N = torch.randn(3, rows, dtype=torch.float64, generator=generator)
    return policy_N, ref_N, target_N, torch.randint(1, 300, (rows,), generator=generator)


def masked_sum(row: dict[str, list[float]], field: str) -> float:
    return sum(value for value, kept in zip(row[field], row["mask"], strict=True) if kept)


def row_tensors(rows: list[dict[str, Any]], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    policy_N = torch.tensor([masked_sum(row, "policy_token_logps") for row in rows], dtype=dtype, requires_grad=True)
    ref_N = torch.tensor([masked_sum(row, "reference_token_logps") for row in rows], dtype=dtype)
    return policy_N, ref_N, torch.tensor([sum(row["mask"]) for row in rows])


def pair_targets(case: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """What the published pair losses regress on: chosen rows, then rejected rows."""
    if case["loss_type"] == "sppo_single":
        half = [p - 0.5 for p in case["chosen_probs"]]
        values = half + [-value for value in half]
    else:
        shift = 0.5 if case["loss_type"] == "sppo" else 0.0
        values = [value - shift for value in case["chosen_probs_win"] + case["chosen_probs_lose"]]
    clamp = math.inf if case["clamp"] is None else case["clamp"]
    target_N = torch.tensor(values, dtype=dtype) / case["beta"]
    return target_N.clamp(-clamp, clamp)


@given(seeds, st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_loss_and_gradient_match_a_slow_loop(seed: int, rows: int, power: float) -> None:
    policy_N, ref_N, target_N, lengths_N = random_rows(seed, rows)
    policy_N.requires_grad_()
    loss = gpo_loss(policy_N, ref_N, target_N, lengths_N=lengths_N, length_power=power)
    loss.backward()
    total, gradient = 0.0, []
    for policy, ref, target, length in zip(
        policy_N.tolist(), ref_N.tolist(), target_N.tolist(), lengths_N.tolist(), strict=True
    ):
        scale = length**power
        error = (policy - ref) / scale - target
        total += error**2 / rows
        gradient.append(2 * error / scale / rows)
    assert loss.item() == pytest.approx(total)
    assert policy_N.grad is not None and policy_N.grad.tolist() == pytest.approx(gradient)


def test_loss_is_zero_exactly_where_the_ratio_is_the_target() -> None:
    policy_N, ref_N, _, _ = random_rows(0, 5)
    assert gpo_loss(policy_N, ref_N, policy_N - ref_N).item() == 0.0


def test_lengths_do_not_matter_at_power_zero() -> None:
    policy_N, ref_N, target_N, lengths_N = random_rows(1, 5)
    assert gpo_loss(policy_N, ref_N, target_N, lengths_N=lengths_N) == gpo_loss(policy_N, ref_N, target_N)


def test_only_the_policy_receives_a_gradient() -> None:
    tensors = [tensor.requires_grad_() for tensor in random_rows(2, 4)[:3]]
    gpo_loss(*tensors).backward()
    assert [tensor.grad is not None for tensor in tensors] == [True, False, False]


def test_half_precision_rows_are_computed_in_float32() -> None:
    policy_N = torch.tensor([-200.0, -100.0], dtype=torch.bfloat16)
    loss = gpo_loss(policy_N, torch.tensor([-200.25, -100.5]), torch.zeros(2))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((0.25**2 + 0.5**2) / 2)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ((3, 3, 2), {}, r"target_N \[2\]; expected the same \[N\]"),
        ((0, 0, 0), {}, "at least one row"),
        ((2, 2, 2), {"length_power": 1.0}, "lengths_N is missing"),
        ((2, 2, 2), {"length_power": 1.0, "lengths_N": torch.tensor([3])}, r"lengths_N \[1\]"),
        ((2, 2, 2), {"length_power": 1.0, "lengths_N": torch.tensor([3, 0])}, "lengths_N holds 0"),
    ],
)
def test_a_fault_of_the_rows_is_named(shapes: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpo_loss(*(torch.zeros(rows) for rows in shapes), **options)


@given(seeds, st.integers(1, 4), st.floats(0.01, 2.0))
def test_pair_losses_match_a_slow_loop(seed: int, pairs: int, beta: float) -> None:
    policy_N, ref_N, _, _ = random_rows(seed, 2 * pairs)
    ratio = (policy_N - ref_N).tolist()
    margins = [ratio[2 * pair] - ratio[2 * pair + 1] for pair in range(pairs)]
    dpo = sum(math.log1p(math.exp(-beta * margin)) for margin in margins) / pairs
    ipo = sum((margin - 1 / (2 * beta)) ** 2 for margin in margins) / pairs
    assert dpo_loss(policy_N, ref_N, beta=beta).item() == pytest.approx(dpo)
    assert ipo_loss(policy_N, ref_N, beta=beta).item() == pytest.approx(ipo)


def test_pairs_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows do not pair up"):
        dpo_loss(torch.zeros(3), torch.zeros(3), beta=0.1)
    with pytest.raises(ValueError, match="beta is 0"):
        ipo_loss(torch.zeros(2), torch.zeros(2), beta=0)


def test_the_sft_loss_is_the_mean_over_all_rows_so_that_it_adds_up_over_parts() -> None:
    policy_N, lengths_N = torch.tensor([-6.0, -5.0, -8.0]), torch.tensor([3, 5, 4])
    best_N = torch.tensor([1.0, 0.0, 1.0])
    assert sft_loss(policy_N, lengths_N, best_N).item() == pytest.approx((2.0 + 2.0) / 3)


def slow_logps(logits: list[list[list[float]]], labels: list[list[int]]) -> list[float]:
    sums = []
    for row, row_labels in zip(logits, labels, strict=True):
        total = 0.0
        for t in range(len(row_labels) - 1):
            if row_labels[t + 1] != -100:
                total += row[t][row_labels[t + 1]] - math.log(sum(math.exp(value) for value in row[t]))
        sums.append(total)
    return sums


def trainer_logps(logits_NTV: Tensor, labels_NT: Tensor) -> Tensor:
    """Sums of the labelled tokens by the trainer's own head: position t predicts the label at t + 1."""
    rows, places = (labels_NT[:, 1:] != -100).nonzero(as_tuple=True)
    identity_VV = torch.eye(logits_NTV.shape[-1], dtype=logits_NTV.dtype)
    logps_R: Tensor = ChunkedLogProbs.apply(
        logits_NTV[rows, places], identity_VV, labels_NT[rows, places + 1], 1.0, 0.0
    )
    return answer_logps(logps_R, (labels_NT[:, 1:] != -100).sum(-1).tolist())


@given(seeds, st.integers(1, 4), st.integers(2, 8))
def test_log_probabilities_of_answers_match_a_slow_loop(seed: int, rows: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NTV = torch.randn(rows, tokens, 5, generator=generator)
    labels_NT = torch.randint(-2, 5, (rows, tokens), generator=generator)
    labels_NT = labels_NT.where(labels_NT >= 0, -100)
    labels_NT[:, -1] = 3  # Each answer has a token.
    expected = slow_logps(logits_NTV.tolist(), labels_NT.tolist())
    assert trainer_logps(logits_NTV, labels_NT).tolist() == pytest.approx(expected, rel=1e-5)


def test_their_gradient_is_that_of_the_dense_log_softmax() -> None:
    generator = torch.Generator().manual_seed(3)
    logits_NTV = torch.randn(3, 6, 7, generator=generator, requires_grad=True)
    labels_NT = torch.randint(0, 7, (3, 6), generator=generator)
    labels_NT[0, :3] = labels_NT[1, 4:] = -100
    mask_NT = labels_NT[:, 1:] != -100
    index_NT1 = labels_NT[:, 1:].clamp(min=0).unsqueeze(-1)
    dense_NT = logits_NTV[:, :-1].log_softmax(-1).gather(-1, index_NT1).squeeze(-1) * mask_NT
    weight_N = torch.tensor([1.0, -2.0, 0.5])
    (expected,) = torch.autograd.grad((dense_NT.sum(-1) * weight_N).sum(), logits_NTV)
    (found,) = torch.autograd.grad((trainer_logps(logits_NTV, labels_NT) * weight_N).sum(), logits_NTV)
    torch.testing.assert_close(found, expected)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    generator = torch.Generator().manual_seed(5)
    logits_NTV = torch.randn(2, 400, 50, generator=generator).bfloat16()
    labels_NT = torch.randint(0, 50, (2, 400), generator=generator)
    found_N = trainer_logps(logits_NTV, labels_NT)
    assert found_N.dtype == torch.float32
    torch.testing.assert_close(found_N, trainer_logps(logits_NTV.float(), labels_NT))


@needs_fixture
def test_log_probabilities_of_answers_match_the_fixture() -> None:
    part = DATA["logits_to_logps"]
    labels_NT = torch.tensor(part["labels"])
    sum_N = trainer_logps(torch.tensor(part["logits"]), labels_NT)
    count_N = (labels_NT[:, 1:] != -100).sum(-1)
    assert sum_N.tolist() == pytest.approx(part["expected"]["sum_logps"], rel=1e-5)
    assert (sum_N / count_N).tolist() == pytest.approx(part["expected"]["mean_logps"], rel=1e-5)
    assert count_N.tolist() == part["expected"]["token_count"]


@needs_fixture
def test_the_fixture_has_all_its_cases() -> None:
    assert (len(DATA["cases"]), len(DATA["all_k"])) == (10, 3)


@needs_fixture
@precisions
@pytest.mark.parametrize("index", range(len(DATA.get("cases", []))))
def test_pair_losses_of_the_published_trainer_and_their_gradients_match(
    index: int, dtype: torch.dtype, relative: float
) -> None:
    case, pairs = DATA["cases"][index], DATA["pairs"]
    expected, count = case["expected"], len(pairs["chosen"])
    policy_N, ref_N, lengths_N = row_tensors(pairs["chosen"] + pairs["rejected"], dtype)
    target_N, power = pair_targets(case, dtype), case.get("gamma") or 0.0
    loss = gpo_loss(policy_N, ref_N, target_N, lengths_N=lengths_N, length_power=power)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=relative)
    assert policy_N.grad is not None
    gradient = expected["grad_policy_chosen"] + expected["grad_policy_rejected"]
    assert policy_N.grad.tolist() == pytest.approx(gradient, rel=relative, abs=0.0)
    for b in range(count):
        rows = torch.tensor([b, count + b])
        pair = gpo_loss(policy_N[rows], ref_N[rows], target_N[rows], lengths_N=lengths_N[rows], length_power=power)
        assert pair.item() == pytest.approx(expected["loss_per_pair"][b], rel=relative)
    if "reward_chosen" not in expected:  # ln_gpo was never published as code and so has no logged rewards
        return
    reward = expected["reward_chosen"] + expected["reward_rejected"]
    assert (case["beta"] * (policy_N - ref_N)).tolist() == pytest.approx(reward, rel=relative, abs=0.0)


@needs_fixture
@precisions
@pytest.mark.parametrize("index", range(len(DATA.get("all_k", []))))
def test_the_objective_of_the_paper_over_all_answers_matches(index: int, dtype: torch.dtype, relative: float) -> None:
    case = DATA["all_k"][index]
    targets, rows = [], []
    for group, expected in zip(case["groups"], case["expected"]["target"], strict=True):
        score_KK = torch.tensor(group["raw"], dtype=dtype)
        target_K = preference_targets(score_KK, method="gpo", tau=case["tau"], beta=case["beta"])
        assert target_K.tolist() == pytest.approx(expected, rel=relative, abs=0.0)
        targets.append(target_K)
        rows += group["rows"]
    policy_N, ref_N, lengths_N = row_tensors(rows, dtype)
    loss = gpo_loss(policy_N, ref_N, torch.cat(targets), lengths_N=lengths_N, length_power=case["gamma"] or 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=relative)
    gradient = [value for group in case["expected"]["grad_policy"] for value in group]
    # Where a log-ratio nearly is its target, what is left of it has the rounding of the two sums that it came from.
    rounding = 2 / len(policy_N) * torch.finfo(dtype).eps * policy_N.abs().max().item()
    assert policy_N.grad is not None and rounding < 1e-6
    assert policy_N.grad.tolist() == pytest.approx(gradient, rel=relative, abs=rounding)
