"""Chunked log-probabilities against plain log_softmax, forward and backward, and the head on whole models.

Run: python -m pytest tests/gpo/training/test_log_probs.py
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from gpo.training import log_probs
from gpo.training.layout import lay_out
from gpo.training.log_probs import ChunkedLogProbs, add_log_prob_head, answer_logps, logit_transform
from tests.gpo.training.small_training import make_trainer
from tests.tiny import make_tiny_model

torch.set_num_threads(1)
TRANSFORMS = [(1.0, 0.0), (0.25, 0.0), (1.0, 2.0), (3.0, 5.0)]
transforms = pytest.mark.parametrize(("scale", "cap"), TRANSFORMS)


def random_inputs(seed: int, rows: int, hidden: int = 12, vocabulary: int = 31) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(rows, hidden, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    return hidden_NH, weight_VH, torch.randint(0, vocabulary, (rows,), generator=generator)


def plainly(hidden_NH: Tensor, weight_VH: Tensor, label_N: Tensor, scale: float, cap: float) -> Tensor:
    logits_NV = scale * (hidden_NH @ weight_VH.T)
    if cap:
        logits_NV = cap * torch.tanh(logits_NV / cap)
    return torch.log_softmax(logits_NV, -1).gather(-1, label_N[:, None])[:, 0]


def value_and_gradients(
    function: Any, hidden_NH: Tensor, weight_VH: Tensor, label_N: Tensor, scale: float, cap: float
) -> tuple[Tensor, ...]:
    hidden_NH, weight_VH = (tensor.detach().clone().requires_grad_() for tensor in (hidden_NH, weight_VH))
    logps_N = function(hidden_NH, weight_VH, label_N, scale, cap)
    # Weights that differ by row, so that a gradient in the wrong row shows.
    wanted_N = torch.linspace(-1.0, 2.0, len(label_N), dtype=logps_N.dtype)
    return (logps_N.detach(), *torch.autograd.grad((logps_N * wanted_N).sum(), [hidden_NH, weight_VH]))


def compare(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], relative: float, reach: tuple[float, ...] = ()
) -> None:
    """Errors against the largest entry: single entries may cancel to nearly nothing.

    `reach` is what the terms of each sum can reach, where all of them together may cancel.
    """
    for one, other, least in zip(found, expected, reach or (1e-6,) * len(found), strict=True):
        largest = other.abs().max().item()
        assert (one.double() - other.double()).abs().max().item() <= relative * max(largest, least)


def gradient_reach(hidden_NH: Tensor, weight_VH: Tensor, scale: float) -> tuple[float, float, float]:
    """Size of what cancels in a value and in the two gradients.

    A gradient is scale * (onehot - softmax) times the other factor. Each of the two is of order 1 and known to
    float32's rounding of the logits, but their difference vanishes when p goes to 1: the error is that of the terms.
    """
    logit = scale * (hidden_NH.abs() @ weight_VH.T.abs()).max().item()
    slope = 2.0 * scale
    return logit, slope * weight_VH.abs().max().item(), slope * hidden_NH.abs().max().item()


@transforms
@pytest.mark.parametrize("rows_a_slice", [1, 2, 1000])
@pytest.mark.parametrize("rows_a_chunk", [1, 3, 7, 1000])
def test_values_and_gradients_are_those_of_log_softmax_however_many_chunks_and_slices(
    scale: float, cap: float, rows_a_chunk: int, rows_a_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = random_inputs(0, 20)
    monkeypatch.setattr(log_probs, "CHUNK_BYTES", rows_a_chunk * 31 * 4)
    monkeypatch.setattr(log_probs, "SLICE_ELEMENTS", rows_a_slice * 31)
    single = (exact[0].float(), exact[1].float(), exact[2])
    found = value_and_gradients(ChunkedLogProbs.apply, *single, scale, cap)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    compare(found, value_and_gradients(plainly, *single, scale, cap), 2e-6)
    compare(found, value_and_gradients(plainly, *exact, scale, cap), 2e-6)


def test_a_vocabulary_larger_than_a_chunk_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_BYTES", 5)
    monkeypatch.setattr(log_probs, "SLICE_ELEMENTS", 5)
    hidden, weight, label = random_inputs(1, 4)
    found = value_and_gradients(ChunkedLogProbs.apply, hidden.float(), weight.float(), label, 1.0, 0.0)
    compare(found, value_and_gradients(plainly, hidden, weight, label, 1.0, 0.0), 2e-6)


# Far from the cap: near it 1 - tanh^2 cancels in float32, for torch's own gradient as well.
@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([(1.0, 0.0), (3.0, 0.0), (0.5, 10.0)]))
def test_log_probabilities_are_never_positive_and_gradients_agree(
    seed: int, rows: int, transform: tuple[float, float]
) -> None:
    hidden, weight, label = random_inputs(seed, rows)
    found = value_and_gradients(ChunkedLogProbs.apply, hidden.float(), weight.float(), label, *transform)
    assert found[0].max() <= 1e-6
    exact = value_and_gradients(plainly, hidden, weight, label, *transform)
    compare(found, exact, 1e-5, gradient_reach(hidden, weight, transform[0]))


def test_a_gradient_that_cancels_is_held_to_the_rounding_of_its_terms() -> None:
    """p = 1 - 4e-6: the gradient is tiny, and float32 knows it to 1e-7 of the terms, not of itself."""
    hidden, weight = torch.eye(2, 12, dtype=torch.float64) * 12.4, torch.eye(31, 12, dtype=torch.float64)
    label = torch.tensor([0, 1])
    found = value_and_gradients(ChunkedLogProbs.apply, hidden.float(), weight.float(), label, 1.0, 0.0)
    exact = value_and_gradients(plainly, hidden, weight, label, 1.0, 0.0)
    assert 0 < exact[1].abs().max() < 1e-3
    compare(found, exact, 1e-6, gradient_reach(hidden, weight, 1.0))


@transforms
def test_bfloat16_stays_near_the_float32_result(scale: float, cap: float) -> None:
    hidden, weight, label = (tensor.to(torch.bfloat16) for tensor in random_inputs(2, 64, hidden=64, vocabulary=301))
    label = label.long() % 301
    found = value_and_gradients(ChunkedLogProbs.apply, hidden / 4, weight, label, scale, cap)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    exact = value_and_gradients(plainly, (hidden / 4).double(), weight.double(), label, scale, cap)
    assert (found[0].double() - exact[0]).abs().max() < 0.02 * max(1.0, scale)
    assert (found[0].double() - exact[0]).mean().abs() < 0.005 * max(1.0, scale)
    compare(found[1:], exact[1:], 0.02)


def test_the_labels_own_logit_is_not_rounded_to_bfloat16() -> None:
    hidden = torch.full((1, 64), 0.99609375, dtype=torch.bfloat16)
    weight = torch.zeros(3, 64, dtype=torch.bfloat16)
    weight[0] = 0.25390625  # the exact product is 16.1865; bfloat16 knows 16.125 and 16.25 there
    weight[1] = 0.5  # 31.875 exactly, which alone decides the normaliser
    logp = ChunkedLogProbs.apply(hidden, weight, torch.tensor([0]), 1.0, 0.0)
    torch.testing.assert_close(logp, plainly(hidden.float(), weight.float(), torch.tensor([0]), 1.0, 0.0))


def test_no_answer_token_at_all_gives_nothing_and_zero_gradients() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    logps = ChunkedLogProbs.apply(hidden, weight, torch.zeros(0, dtype=torch.long), 1.0, 0.0)
    assert logps.shape == (0,) and logps.dtype == torch.float32
    logps.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, 8)
    assert weight.grad is not None and not weight.grad.any()


def test_a_frozen_head_gets_no_gradient_and_the_states_keep_theirs() -> None:
    hidden, weight, label = random_inputs(3, 6)
    states = hidden.float().requires_grad_()
    ChunkedLogProbs.apply(states, weight.float(), label, 1.0, 0.0).sum().backward()
    exact = hidden.requires_grad_()
    plainly(exact, weight, label, 1.0, 0.0).sum().backward()
    assert states.grad is not None and exact.grad is not None
    compare((states.grad,), (exact.grad,), 2e-6)


ROWS = [([5, 9, 200], [7, 8, 30, 41]), ([6], [50, 51]), ([100, 101, 102, 103], [1, 2, 3, 4, 5, 6])]


def from_full_logits(model: Any, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """Each row alone, from the model's own logits: log p of every answer token, row by row."""
    found = []
    for prompt, answer in rows:
        logps_TV = torch.log_softmax(model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float(), -1)
        found += [logps_TV[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
    return torch.stack(found)


def with_head(model: Any, rows: list[tuple[list[int], list[int]]] = ROWS) -> Tensor:
    add_log_prob_head(model)
    found: Tensor = model(**ready(rows))
    return found


def ready(rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """What the head takes for these rows."""
    return {name: value for name, value in lay_out(rows, "padded").items() if name != "lengths"}


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite", "cohere", "hyperclovax"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_head_gives_the_log_probabilities_of_the_full_logits_and_their_gradients(
    model_type: str, tied: bool
) -> None:
    changes: dict[str, Any] = {"gemma2": {"final_logit_softcapping": 1.5}}
    changes |= {"granite": {"logits_scaling": 4.0}, "hyperclovax": {"logits_scaling": 0.25}}
    model = make_tiny_model(model_type, tied=tied, **changes.get(model_type, {}))
    expected = from_full_logits(model, ROWS)
    expected.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = with_head(model)
    assert found.dtype == torch.float32 and found.shape == (12,)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    compare(tuple(p.grad for p in model.parameters()), tuple(gradients.values()), 1e-4)


class RowsOfWidth(TorchDispatchMode):
    """Collects how many rows every tensor of a last dimension has that an operation gives within."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if isinstance(given, Tensor) and given.dim() > 1 and given.shape[-1] == self._width:
            self.found.add(given.numel() // self._width)
        return given


def test_a_training_step_computes_logits_of_answer_tokens_only_a_chunk_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, chunk = make_trainer(tmp_path), 5
    (item, *_) = trainer.get_train_dataloader()
    tokens = sum(sum(part["lengths"]) for part in item["parts"])
    vocabulary, hidden = trainer.model.lm_head.weight.shape
    compute, rows = log_probs._logits, []
    monkeypatch.setattr(log_probs, "_logits", lambda *given: rows.append(len(given[0])) or compute(*given))
    monkeypatch.setattr(log_probs, "CHUNK_BYTES", chunk * vocabulary * 4)
    with RowsOfWidth(vocabulary) as wide:
        trainer.training_step(trainer.model, item)
    # Each chunk comes twice, once for the backward pass; the head's weight lies on its side for the products.
    assert max(rows) == chunk < tokens != hidden and sum(rows) == 2 * tokens
    assert wide.found == {*rows, hidden}


def test_without_answers_the_forward_is_the_models_own() -> None:
    model = make_tiny_model()
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids).logits
    add_log_prob_head(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.generate(ids[:1], max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


def test_a_copy_of_a_model_with_the_head_computes_with_its_own_weights() -> None:
    model = make_tiny_model()
    before = with_head(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert torch.equal(copied(**ready(ROWS)), before) and not torch.equal(with_head(model), before)


def test_log_probabilities_of_answers_are_the_sums_over_their_tokens() -> None:
    logps_R = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert answer_logps(logps_R, [1, 3]).tolist() == [1.0, 14.0]


def test_under_autocast_the_head_computes_in_its_type_and_answers_in_float32() -> None:
    model = make_tiny_model()
    expected = from_full_logits(model, ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_head(model)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.3
    found.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {}, (1.0, 0.0)),
        ("gemma2", {}, (1.0, 30.0)),
        ("gemma2", {"final_logit_softcapping": None}, (1.0, 0.0)),
        ("cohere", {"logit_scale": 0.0625}, (0.0625, 0.0)),
        ("granite", {"logits_scaling": 8.0}, (0.125, 0.0)),
        ("hyperclovax", {"logits_scaling": 8.0}, (8.0, 0.0)),
    ],
)
def test_scale_and_cap_are_read_from_the_config(
    model_type: str, changes: dict[str, Any], expected: tuple[float, float]
) -> None:
    assert logit_transform(AutoConfig.for_model(model_type, **changes)) == expected


@pytest.mark.parametrize("name", ["output_multiplier", "lm_head_multiplier"])
def test_a_scale_under_a_name_that_is_not_known_is_refused(name: str) -> None:
    assert logit_transform(AutoConfig.for_model("llama", **{name: 1.0})) == (1.0, 0.0)
    with pytest.raises(ValueError, match=f"llama: config.{name} is not supported"):
        logit_transform(AutoConfig.for_model("llama", **{name: 0.5}))


def test_a_head_with_a_bias_is_refused_and_not_silently_computed_without_it() -> None:
    with pytest.raises(ValueError, match="phi: an LM head with a bias is not supported"):
        add_log_prob_head(make_tiny_model("phi"))
