"""What `reward.cpu_kernels` leans on: classes and a function of transformers 5.19, and two kernels of vLLM 0.32.

Run: python -m pytest tests/contract/test_cpu_kernels.py
When it fails after an upgrade, look at the norms and at `apply_rotary_pos_emb` in transformers' modeling files, and at
`rms_norm` and `rotary_embedding` in vllm/_custom_ops.py.
"""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward import cpu_kernels
from reward.cpu_kernels import NORMS, ROTATION, compiled_layers
from reward.packed_attention import packed_states
from reward.packing import pack_rows
from tests.tiny import make_tiny_model

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROWS = sorted([(*range(40), *range(k, k + 30)) for k in (50, 90, 130)])

pytestmark = pytest.mark.skipif(
    not cpu_kernels.kernels_are_there(), reason="no vLLM here, or no instructions for bfloat16"
)


def tiny(model_type: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> PreTrainedModel:
    """A backbone whose norms are not all ones."""
    model = make_tiny_model(model_type, **changes).model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    found: PreTrainedModel = model.to(dtype)
    return found


def states(model: PreTrainedModel) -> Tensor:
    return packed_states(model, pack_rows(ROWS)).double()


def plain_states(model: PreTrainedModel) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_kernels, "kernels_are_there", lambda: False)
        return states(model)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("head_dim", [32, 16])
def test_states_are_as_near_to_float32_as_those_of_plain_layers(model_type: str, head_dim: int) -> None:
    model = tiny(model_type, head_dim=head_dim)
    exact = states(as_float32(model))
    ours, plain = states(model), plain_states(model)
    assert not torch.equal(ours, plain), "the kernels were used"
    assert float((ours - exact).norm()) < 1.1 * float((plain - exact).norm())


def as_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a wider type."""
    found = type(model)(model.config).eval().float()
    found.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    return found


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, "gemma"])
def test_float32_and_other_norms_keep_every_bit(model_type: str) -> None:
    model = tiny(model_type, torch.bfloat16 if model_type == "gemma" else torch.float32)
    assert torch.equal(states(model), plain_states(model))


@pytest.mark.parametrize("half", [16, 32, 48])
def test_the_rotation_is_right_to_bfloat16_and_in_place(half: int) -> None:
    plain = getattr(importlib.import_module("transformers.models.llama.modeling_llama"), ROTATION)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 37, heads, 2 * half, generator=generator).bfloat16().transpose(1, 2) for heads in (3, 1))
    angle = torch.rand(1, 37, half, generator=generator) * 6
    cos, sin = (torch.cat([values] * 2, dim=-1).bfloat16() for values in (angle.cos(), angle.sin()))
    exact = plain(q.double(), k.double(), cos.double(), sin.double())
    found = cpu_kernels._rotated(plain, q, k, cos, sin)
    for ours, right, given in zip(found, exact, (q, k), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=2**-7, rtol=2**-7)
        assert ours.data_ptr() == given.data_ptr()


def test_a_head_too_small_for_the_kernel_is_turned_by_transformers() -> None:
    def plain(*given: Tensor) -> tuple[Tensor, ...]:
        return given

    q, k, cos, sin = (torch.ones(1, *shape).bfloat16() for shape in ((2, 5, 16), (1, 5, 16), (5, 16), (5, 16)))
    assert cpu_kernels._rotated(plain, q, k, cos, sin)[0] is q  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_model_is_as_before_behind_the_context_even_after_a_fault(model_type: str) -> None:
    model = tiny(model_type)
    home = importlib.import_module(type(model).__module__)
    norms = [module for module in model.modules() if type(module).__name__ in NORMS]
    before = getattr(home, ROTATION)
    assert len(norms) >= 5
    with pytest.raises(ZeroDivisionError), compiled_layers(model):
        assert getattr(home, ROTATION) is not before
        assert all("forward" in vars(norm) for norm in norms)
        raise ZeroDivisionError
    assert getattr(home, ROTATION) is before
    assert not any("forward" in vars(norm) for norm in norms)


def test_a_norm_whose_forward_somebody_replaced_is_left_alone() -> None:
    model = tiny("llama")
    calls = []
    norm = model.norm
    norm.forward = lambda states: calls.append(states.shape) or type(norm).forward(norm, states)
    states(model)
    assert calls
    assert "forward" in vars(norm)
