"""Attention over packed rows with a gradient: the same numbers as plain padded rows, forward and backward.

Run: python -m pytest tests/reward/test_packed_training.py
"""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from reward.encoding import EncodedConversation
from reward.model import pad_rows
from reward.packed_attention import MODEL_TYPES, PackedMasks
from reward.packed_training import trained_states, training_attention, use_packed_attention
from reward.packing import pack_rows
from tests.tiny import make_tiny_model

torch.set_num_threads(1)
PROMPT = list(range(20, 60))
ROWS = sorted(
    tuple(row)
    for row in (
        [*PROMPT, 1, 2, 3, 4, 5],
        [*PROMPT, 1, 9],
        [*PROMPT, *range(60, 80), 7],
        [*PROMPT, *range(60, 80), 8, 8, 8],
        [3, 1, 2],
    )
)


def gradients(model: Any, states: list[Tensor]) -> dict[str, Tensor]:
    """Of a function that weighs every state of every row differently."""
    total = sum(
        (state * torch.linspace(-1, 1, state.numel()).view_as(state)).sum() * (row + 1)
        for row, state in enumerate(states)
    )
    model.zero_grad()
    total.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def plain(model: Any) -> list[Tensor]:
    batch = pad_rows([EncodedConversation(list(row), 0, 0, False, True) for row in ROWS])
    model.config._attn_implementation = "eager"
    states = model(input_ids=batch.input_ids_NT, attention_mask=batch.attention_mask_NT).last_hidden_state
    return [states[place, : len(row)] for place, row in enumerate(ROWS)]


def packed(model: Any) -> list[Tensor]:
    use_packed_attention(model)
    rows = pack_rows(ROWS)
    states = trained_states(model, rows, torch.device("cpu"))
    return [torch.cat([states[start:stop] for start, stop in spans]) for spans in rows.seen]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_states_and_gradients_are_those_of_padded_rows(model_type: str) -> None:
    changes = {"sliding_window": 24} if model_type in ("gemma2", "mistral") else {}
    model = make_tiny_model(model_type, **changes).base_model
    expected_states, found_states = plain(model), packed(model)
    for expected, found in zip(expected_states, found_states, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    expected_grads = gradients(model, plain(model))
    found_grads = gradients(model, packed(model))
    assert found_grads.keys() == expected_grads.keys()
    for name, expected in expected_grads.items():
        scale = float(expected.abs().max()) + 1e-6
        torch.testing.assert_close(found_grads[name] / scale, expected / scale, rtol=1e-3, atol=2e-5, msg=name)


def test_gradients_are_the_same_under_checkpointing() -> None:
    model = make_tiny_model().base_model.train()
    expected = gradients(model, packed(model))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, packed(model))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_under_autocast_states_and_gradients_stay_close_to_float32(model_type: str) -> None:
    changes = {"sliding_window": 24} if model_type in ("gemma2", "mistral") else {}
    model = make_tiny_model(model_type, **changes).base_model
    expected_states = packed(model)
    expected_grads = gradients(model, expected_states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_states = packed(model)
    found_grads = gradients(model, found_states)
    for found, expected in zip(found_states, expected_states, strict=True):
        assert distance(found, expected) < 0.03
    assert found_grads.keys() == expected_grads.keys()
    for name, expected in expected_grads.items():
        assert distance(found_grads[name], expected) < 0.06, name


def test_in_bfloat16_gradients_are_as_near_to_exact_ones_as_those_of_eager_attention() -> None:
    masks = PackedMasks(pack_rows(ROWS).segments, torch.float32, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    heads = [torch.randn(1, count, masks.tokens, 64, generator=draw).bfloat16() for count in (6, 2, 2, 6)]

    def grads(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [one.to(dtype).requires_grad_() for one in heads[:3]]
        return list(torch.autograd.grad(attend(*inputs), inputs, heads[3].to(dtype).transpose(1, 2)))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return training_attention(cast(Any, None), q, k, v, None, scaling=0.125, packed_masks=masks)[0]

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As transformers' own: probabilities in float32, products in the type of the values."""
        blocked = torch.full((masks.tokens, masks.tokens), float("-inf"))
        for segment in masks.segments:
            part = masks.mask(segment, None)
            seen = [place for start, stop in segment.seen for place in range(start, stop)]
            blocked[segment.start : segment.stop, seen] = part
        k, v = (one.repeat_interleave(3, 1) for one in (k, v))
        logits = q @ k.transpose(2, 3) * 0.125 + blocked.to(q.dtype)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return (logits.softmax(-1, dtype=wide).to(q.dtype) @ v).transpose(1, 2)

    exact = grads(eager, torch.float64)
    for name, truth, own, usual in zip(
        "qkv", exact, grads(ours, torch.bfloat16), grads(eager, torch.bfloat16), strict=True
    ):
        assert distance(own, truth) < 1.1 * distance(usual, truth) < 0.02, name


def distance(found: Tensor, expected: Tensor) -> float:
    """Length of the difference, as a share."""
    return float((found.detach().float() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("window", [None, 24])
def test_masks_have_the_type_of_the_queries_which_kernels_of_a_gpu_insist_on(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.13: CUDA's refuse another type, those of the CPU take it."""
    model = make_tiny_model("mistral", sliding_window=window).base_model
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query: Tensor, *args: Any, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        seen.append((query.dtype, None if attn_mask is None else attn_mask.dtype))
        return kernel(query, *args, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        packed(model)
    assert (torch.bfloat16, torch.bfloat16) in seen
    assert {mask for _, mask in seen} <= {None, torch.bfloat16}
