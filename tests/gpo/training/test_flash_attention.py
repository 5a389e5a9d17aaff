"""What flash-attn's kernel is told of a packed row, by a stand-in that refuses what the kernel refuses and is slow.

Run: python -m pytest tests/gpo/training/test_flash_attention.py
"""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gpo.training.layout import lay_out
from gpo.training.log_probs import add_log_prob_head, answer_logps
from gpo.training.segment_attention import _flash_attention, segment_attention, segments_of
from reward.packed_training import training_attention
from tests.tiny import make_tiny_model

ROWS = [([5, 6, 7, 8], [10, 11, 12]), ([5, 6, 7, 8], [20, 21]), ([9], list(range(30, 39)))]


class SlowKernel:
    """`flash_attn_varlen_func` of flash-attn 2.8, answer by answer; keeps what it was told."""

    def __init__(self) -> None:
        self.borders: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        *,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int],
        softcap: float,
    ) -> Tensor:
        assert [tensor.dtype for tensor in (q, k, v)] == [torch.bfloat16] * 3 and causal
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert cu_seqlens_q[-1] == len(q) and cu_seqlens_k[-1] == len(k) == len(v)
        assert max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        self.borders.append((cu_seqlens_q, cu_seqlens_k))
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        found = []
        for number in range(len(cu_seqlens_q) - 1):
            own = slice(int(cu_seqlens_q[number]), int(cu_seqlens_q[number + 1]))
            seen = slice(int(cu_seqlens_k[number]), int(cu_seqlens_k[number + 1]))
            logits = torch.einsum("qhd,khd->hqk", q[own].float(), k[seen].float()) * softmax_scale
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            _, queries, keys = logits.shape
            # Causal and window are aligned to the end of the keys.
            back = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
            hidden = (back < 0) | ((back > window_size[0]) if window_size[0] >= 0 else False)
            logits = logits.masked_fill(hidden, float("-inf"))
            found.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), v[seen].float()).to(q.dtype))
        return torch.cat(found)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SlowKernel:
    module: Any = ModuleType("flash_attn")
    module.flash_attn_varlen_func = SlowKernel()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    found: SlowKernel = module.flash_attn_varlen_func
    return found


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_kernel_gives_what_the_products_by_segment_give(
    kernel: SlowKernel, window: int | None, softcap: float | None
) -> None:
    part = lay_out(ROWS, "shared")
    masks, tokens = segments_of(part)["packed_masks"], part["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(1, 4, tokens, 8, generator=generator)
    key, value = (torch.randn(1, 2, tokens, 8, generator=generator) for _ in "kv")
    rule: dict[str, Any] = {"scaling": 0.5, "packed_masks": masks, "sliding_window": window, "softcap": softcap}
    module: Any = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = _flash_attention(module, query, key, value.bfloat16(), None, **rule)
        expected, _ = training_attention(module, query, key, value.bfloat16(), None, **rule)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.0, atol=0.03)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_float32_weights_under_autocast_reach_the_kernel_in_one_type_and_borders_are_made_once_a_row(
    kernel: SlowKernel, model_type: str
) -> None:
    model = make_tiny_model(model_type, layers=3)
    add_log_prob_head(model)
    part = lay_out(ROWS, "shared")
    lengths, extra, _ = part.pop("lengths"), segments_of(part), part.pop("segments")
    logps = []
    for use_flash in (True, False):
        with segment_attention(model.config, use_flash), torch.autocast("cpu", dtype=torch.bfloat16):
            logps.append(answer_logps(model(**part, **extra), lengths))
    assert len(kernel.borders) == 3
    assert all(one is other for row in kernel.borders for one, other in zip(row, kernel.borders[0], strict=True))
    torch.testing.assert_close(logps[0], logps[1], rtol=0.02, atol=0.2)
    logps[0].sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in model.parameters())
