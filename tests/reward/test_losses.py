"""The losses against the published values and gradients, from closed forms to whole training batches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from reward.encoding import ConversationEncoder
from reward.errors import RewardInputError
from reward.heads import PreferenceHeads
from reward.losses import logistic_loss, regression_loss, soft_label_loss
from reward.model import GeneralPreferenceModel, pad_rows
from reward.preference import preference_probability, preference_score
from tests.reward import published

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
torch.set_num_threads(1)


def leaf(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def rows_of(values: Any) -> Tensor:
    tensor = leaf(values)
    return tensor[:, None] if tensor.dim() == 1 else tensor


def same(found: Tensor | None, expected: Any, **tolerance: Any) -> None:
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), **tolerance)


@published.present
@pytest.mark.parametrize("case", published.entries("pair_losses"))
def test_pair_losses_and_gradients_agree_with_the_published_ones(case: dict[str, Any]) -> None:
    chosen, rejected = leaf(case["chosen"]), leaf(case["rejected"])
    gate_NL, hidden, head = None, None, None
    if case["head"] == "gpm_gated":
        hidden, head = leaf(case["prompt_hidden"]), leaf(case["prompt_head"])
        gate_NL = torch.softmax(hidden @ head.T, -1)
        same(gate_NL, case["expected"]["gate"], **EXACT)
    width = case["value_head_dim"]
    score_N = preference_score(chosen.reshape(-1, width), rejected.reshape(-1, width), gate_NL)
    margin_N = None if case["margin"] is None else torch.tensor(case["margin"], dtype=torch.float64)
    loss_N = logistic_loss(score_N, case["tau"], margin_N)
    loss_N.mean().backward()
    expected = case["expected"]
    same(score_N, expected["score"], **EXACT)
    same(loss_N, expected["loss_per_row"], **EXACT)
    same(loss_N.mean(), expected["loss"], **EXACT)
    shifted_N = score_N if margin_N is None else score_N - margin_N
    same(preference_probability(shifted_N, case["tau"]), expected["prob_per_row"], **EXACT)
    same(chosen.grad, expected["grad_chosen"], **EXACT)
    same(rejected.grad, expected["grad_rejected"], **EXACT)
    if hidden is not None and head is not None:
        same(head.grad, expected["grad_prompt_head"], **EXACT)
        same(hidden.grad, expected["grad_prompt_hidden"], **EXACT)


@published.present
@pytest.mark.parametrize("case", published.entries("head_gradients"))
def test_gradients_through_the_heads_agree_with_the_published_ones(case: dict[str, Any]) -> None:
    gated = case["prompt_head"] is not None
    value = torch.tensor(case["value_head"])
    heads = PreferenceHeads(value.shape[1], case["value_head_dim"], gated=gated, l2_normalize=case["l2_normalize"])
    tensors = {"value_head.weight": value}
    if gated:
        tensors["prompt_head.weight"] = torch.tensor(case["prompt_head"])
    heads.load(tensors)
    prompt_NH = torch.tensor(case["hidden_prompt"]) if gated else None
    chosen_ND, gate_NL = heads(torch.tensor(case["hidden_chosen"]), prompt_NH)
    rejected_ND, _ = heads(torch.tensor(case["hidden_rejected"]), prompt_NH)
    margin_N = None if case["margin"] is None else torch.tensor(case["margin"])
    loss = logistic_loss(preference_score(chosen_ND, rejected_ND, gate_NL), case["tau"], margin_N).mean()
    loss.backward()
    expected, tolerance = case["expected"], {"rtol": 1e-4, "atol": 1e-5}
    same(chosen_ND.reshape(torch.tensor(expected["chosen"]).shape), expected["chosen"], **tolerance)
    same(loss, expected["loss"], **tolerance)
    same(heads.value_head.weight.grad, expected["grad_value_head"], **tolerance)
    if heads.prompt_head is not None:
        same(heads.prompt_head.weight.grad, expected["grad_prompt_head"], **tolerance)


@published.present
@pytest.mark.parametrize("case", published.entries("soft_label_cross_entropy"))
def test_soft_label_losses_agree_with_the_published_ones(case: dict[str, Any]) -> None:
    score_N = leaf(case["score"])
    loss_N = soft_label_loss(score_N, case["tau"], torch.tensor(case["target_prob"], dtype=torch.float64))
    loss_N.mean().backward()
    expected = case["expected"]
    same(loss_N, expected["loss_per_row"], **EXACT)
    same(loss_N.sum(), expected["sum"], **EXACT)
    same(score_N.grad, expected["grad_score_of_mean"], **EXACT)
    same(preference_probability(score_N, case["tau"]), expected["prob_per_row"], **EXACT)


@published.present
@pytest.mark.parametrize("case", published.entries("training_batches"))
def test_whole_training_batches_agree_with_the_published_ones(case: dict[str, Any]) -> None:
    directory = published.checkpoint(case["checkpoint"])
    model = GeneralPreferenceModel.from_pretrained(directory)
    assert model.settings.tau == case["tau"]
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(directory), model.settings, case["max_length"])
    chosen = encoder.encode([row["chosen"] for row in case["rows"]])
    rejected = encoder.encode([row["rejected"] for row in case["rows"]])
    expected = case["expected"]
    assert [row.input_ids for row in chosen] == expected["chosen_input_ids"]
    assert [row.input_ids for row in rejected] == expected["rejected_input_ids"]
    if "response_len" in expected:
        assert [len(row.input_ids) - row.prompt_len for row in chosen] == expected["response_len"]
    v_2ND, gate_2NL = model(*pad_rows([*chosen, *rejected]))
    count = len(chosen)
    gate_NL = None if gate_2NL is None else gate_2NL[:count]
    margin_N = torch.tensor([row["margin"] for row in case["rows"]]) if case["use_margin"] else None
    score_N = preference_score(v_2ND[:count], v_2ND[count:], gate_NL)
    loss = logistic_loss(score_N, case["tau"], margin_N).mean()
    loss.backward()
    check_batch(model, expected, v_2ND, loss)


def check_batch(model: GeneralPreferenceModel, expected: dict[str, Any], v_2ND: Tensor, loss: Tensor) -> None:
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    outputs = torch.tensor([*expected["chosen_output"], *expected["rejected_output"]])
    torch.testing.assert_close(v_2ND.reshape(outputs.shape), outputs, **tolerance)
    same(loss, expected["loss"], **tolerance)
    same(model.heads.value_head.weight.grad, expected["grad_value_head"], **tolerance)
    if model.heads.prompt_head is not None:
        same(model.heads.prompt_head.weight.grad, expected["grad_prompt_head"], **tolerance)
    gradients = {f"model.{name}": weight.grad for name, weight in model.backbone.named_parameters()}
    gradients |= {name: weight.grad for name, weight in model.heads.named_parameters()}
    same(gradients["model.norm.weight"], expected["grad_final_norm"], **tolerance)
    for name, norm in expected["grad_frobenius_norm"].items():
        gradient = gradients[name]
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4, abs=1e-5)
    total = math.sqrt(sum(float(grad.square().sum()) for grad in gradients.values() if grad is not None))
    assert total == pytest.approx(expected["grad_global_norm"], rel=1e-4)


def test_a_hard_label_of_one_is_the_logistic_loss_and_a_half_is_least_at_a_tie() -> None:
    score_N = torch.linspace(-2, 2, 9, dtype=torch.float64)
    ones_N = torch.ones_like(score_N)
    torch.testing.assert_close(soft_label_loss(score_N, 0.3, ones_N), logistic_loss(score_N, 0.3))
    assert int(soft_label_loss(score_N, 0.3, ones_N / 2).argmin()) == 4


def test_regression_is_the_squared_distance_of_log_odds() -> None:
    score_N = torch.tensor([0.2, -0.1])
    found_N = regression_loss(score_N, 0.1, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(found_N, torch.tensor([1.0, 4.0]))


def test_margins_of_another_shape_and_labels_outside_zero_to_one_are_refused() -> None:
    with pytest.raises(RewardInputError, match="one margin a pair"):
        logistic_loss(torch.zeros(3), 0.1, torch.zeros(3, 1))
    with pytest.raises(RewardInputError, match=r"outside \[0, 1\]"):
        soft_label_loss(torch.zeros(2), 0.1, torch.tensor([0.5, 1.5]))
