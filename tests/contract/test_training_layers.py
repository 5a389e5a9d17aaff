"""What `reward.training_layers` leans on in transformers 5.19: names and formula of norms in a layer, and of
the function that attention calls for rotary positions.

Run: python -m pytest tests/contract/test_training_layers.py
When it fails after an upgrade, look at norms, layers and `apply_rotary_pos_emb` in transformers' modeling files.
"""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward.packed_attention import MODEL_TYPES
from reward.training_layers import use_training_layers
from tests.tiny import make_tiny_model

PLAIN_ONES = ("gemma", "gemma2")
"""Their norms add 1 to the weight."""
IDS = torch.arange(40).view(2, 20)


def backbone(model_type: str = "llama") -> PreTrainedModel:
    """Of float32 weights, with norms that are not all ones."""
    model = make_tiny_model(model_type).base_model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    found: PreTrainedModel = model
    return found


def replaced(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


def of_a_norm(norm: nn.Module, states: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What it hands on in bfloat16, and the gradients of states and weight."""
    states = states.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(states).to(torch.bfloat16)
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return (found, *torch.autograd.grad(found, (states, weight), upstream))


def of_a_model(model: Any, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """States and gradients."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        states = model(input_ids=IDS, use_cache=False).last_hidden_state
    model.zero_grad()
    (states.float() * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return states.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in PLAIN_ONES])
def test_both_norms_of_each_layer_are_replaced_and_no_other(model_type: str) -> None:
    model = backbone(model_type)
    use_training_layers(model)
    places = [f"layers.{n}.{name}" for n in range(2) for name in ("input_layernorm", "post_attention_layernorm")]
    assert sorted(replaced(model)) == places


@pytest.mark.parametrize("model_type", PLAIN_ONES)
def test_norms_of_another_formula_stay(model_type: str) -> None:
    model = backbone(model_type)
    use_training_layers(model)
    assert not replaced(model)


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in PLAIN_ONES])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_norm_hands_on_what_a_plain_one_does_and_has_its_gradient(model_type: str, kind: torch.dtype) -> None:
    norm = backbone(model_type).layers[1].post_attention_layernorm
    draw = torch.Generator().manual_seed(1)
    states, upstream = (torch.randn(2, 20, norm.weight.shape[0], generator=draw) for _ in "xg")
    states, upstream = (3 * states).to(kind), upstream.bfloat16()
    plain = of_a_norm(norm, states, upstream)
    parent = nn.ModuleDict({"input_layernorm": norm})
    use_training_layers(parent)
    ours = of_a_norm(norm, states, upstream)
    if kind == torch.float32:
        assert torch.equal(ours[0], plain[0])
    exact = of_exact_norm(norm, states, upstream)
    for our, other, true in zip(ours, plain, exact, strict=True):
        assert (our - true).norm() <= 1.01 * (other - true).norm() + 1e-6 * true.norm()


def of_exact_norm(norm: Any, states: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """The formula in float64."""
    x, weight = states.double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    found = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * weight
    return (found.detach(), *torch.autograd.grad(found, (x, weight), upstream.double()))


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in PLAIN_ONES])
def test_rotary_positions_turn_as_plain_ones_do_and_turn_gradients_back(model_type: str) -> None:
    model = backbone(model_type)
    home = sys.modules[type(model.layers[0].input_layernorm).__module__]
    use_training_layers(model)
    ours = home.apply_rotary_pos_emb
    plain = ours.args[0]
    draw = torch.Generator().manual_seed(2)
    q, k = (torch.randn(2, 20, heads, 16, generator=draw).bfloat16().transpose(1, 2) for heads in (4, 2))
    angles = 7 * torch.rand(2, 20, 16, generator=draw)
    cos, sin = angles.cos(), angles.sin()  # halves of their own, which no model has
    upstream = [torch.randn(one.shape, generator=draw).bfloat16() for one in (q, k)]
    exact = turned(plain, q.double(), k.double(), cos.double(), sin.double(), [one.double() for one in upstream])
    with torch.autocast("cpu", torch.bfloat16):
        found, other = (turned(function, q, k, cos, sin, upstream) for function in (ours, plain))
    for one, two, true in zip(found, other, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - true).norm() <= 1.01 * (two.bfloat16() - true).norm()


def turned(function: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, upstream: list[Tensor]) -> list[Tensor]:
    """Turned queries and keys and the gradients of plain ones."""
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    found = function(q, k, cos, sin)
    gradients = torch.autograd.grad(found, (q, k), [one.to(two) for one, two in zip(upstream, found, strict=True)])
    return [one.detach() for one in (*found, *gradients)]


def test_without_autocast_nothing_changes() -> None:
    model = backbone()
    expected = of_a_model(model, autocast=False)
    use_training_layers(model)
    states, gradients = of_a_model(model, autocast=False)
    assert torch.equal(states, expected[0])
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected[1].items())


def test_layers_that_are_computed_again_have_the_same_gradients() -> None:
    model = backbone().train()
    use_training_layers(model)
    states, expected = of_a_model(model, autocast=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = of_a_model(model, autocast=True)
    assert torch.equal(again, states)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_copy_computes_with_its_own_weights() -> None:
    model = backbone()
    use_training_layers(model)
    expected, _ = of_a_model(model, autocast=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[0].input_layernorm.weight.zero_()
    assert torch.equal(of_a_model(model, autocast=True)[0], expected)
    assert not torch.equal(of_a_model(other, autocast=True)[0], expected)
