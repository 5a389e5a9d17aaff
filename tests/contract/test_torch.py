"""What `reward.packed_training` leans on in torch 2.13: the gradient of a softmax as one pass, in float32 within.

Run: python -m pytest tests/contract/test_torch.py
The fallback is (grad - (grad * out).sum(-1, keepdim=True)) * out, in three passes.
"""

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_softmax_is_rounded_once(dtype: torch.dtype) -> None:
    assert torch.__version__.startswith("2.13.")
    draw = torch.Generator().manual_seed(0)
    out = torch.randn(7, 300, generator=draw).softmax(-1).to(dtype)
    grad = torch.randn(7, 300, generator=draw).to(dtype)
    found = torch._softmax_backward_data(grad, out, -1, dtype)
    assert found.dtype == dtype
    exact = (grad.double() - (grad.double() * out.double()).sum(-1, keepdim=True)) * out.double()
    close = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=close, atol=1e-7)
