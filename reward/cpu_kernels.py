"""vLLM's compiled norms and rotary positions in transformers' own models: bfloat16 on a CPU, without a gradient.
What it is: a context in which a model's RMS norms and rotary positions go through vLLM's CPU kernels, which read
their input once where transformers takes six and five passes, and round once where it rounds two and three times.
What it is not: it imports no Python of vLLM, which would rearrange this process, and leaves float32 alone.

Written for transformers 5.19 and vLLM 0.32; tests/contract/test_cpu_kernels.py names what it leans on.

Shape suffixes: T tokens, N heads, E head size.
"""

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

LIBRARY = "_C.abi3.so"
"""In vLLM's package: its build for processors with instructions for bfloat16."""
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Classes of transformers that compute x / sqrt(mean(x^2) + variance_epsilon) * weight; Gemma's adds 1 to it."""
ROTATION = "apply_rotary_pos_emb"
"""What attention calls in the module of such a class."""
VECTOR = 16
"""Numbers that the kernels take at once. They refuse no half of a head that is shorter, but read beyond it."""


@contextmanager
def compiled_layers(backbone: nn.Module) -> Iterator[None]:
    """Within, the backbone has norms and rotary positions by vLLM's kernels, where it can; no gradient may flow."""
    norms = [module for module in backbone.modules() if type(module).__name__ in NORMS and _takes(module)]
    if not norms or not kernels_are_there():
        yield
        return
    home = sys.modules[type(norms[0]).__module__]
    plain_rotation = getattr(home, ROTATION)
    try:
        for norm in norms:
            norm.forward = functools.partial(_norm, norm)
        setattr(home, ROTATION, functools.partial(_rotated, plain_rotation))
        yield
    finally:
        setattr(home, ROTATION, plain_rotation)
        for norm in norms:
            norm.__dict__.pop("forward", None)


@functools.cache
def kernels_are_there() -> bool:
    """Whether vLLM's build for this processor could be loaded, which is said."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None or not torch.cpu._is_avx512_bf16_supported():
        return False
    library = Path(package.origin).parent / LIBRARY
    try:
        torch.ops.load_library(library)
    except OSError as error:
        logger.info("norms and rotary positions: plain, because %s cannot be loaded: %s", library, error)
        return False
    if not all(hasattr(torch.ops._C, name) for name in ("rms_norm", "rotary_embedding")):
        logger.info("norms and rotary positions: plain, because this build of vLLM has none for its CPU")
        return False
    logger.info("norms and rotary positions: vLLM's compiled ones, because bfloat16 is computed on a CPU")
    return True


def _takes(norm: nn.Module) -> bool:
    """Whether the kernel can stand for this norm, whose forward nobody else has replaced."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and len(weight) % VECTOR == 0
    return fits and "forward" not in norm.__dict__


def _norm(norm: nn.Module, states: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""
    states = states.contiguous()
    found = torch.empty_like(states)
    torch.ops._C.rms_norm(found, states, norm.weight, norm.variance_epsilon)
    return found


def _rotated(
    plain: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, N, T, E), fresh from their projections, turned in place; cos and sin are (1, T, E)."""
    half = cos.shape[-1] // 2
    if half % VECTOR or len(q) > 1 or q.shape[-1] != cos.shape[-1]:
        return plain(q, k, cos, sin)
    q_TNE, k_TNE = (states[0].transpose(0, 1).contiguous() for states in (q, k))
    turns_TE = torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1).to(q.dtype)
    place_T = torch.arange(len(turns_TE))
    torch.ops._C.rotary_embedding(place_T, q_TNE.flatten(1), k_TNE.flatten(1), cos.shape[-1], turns_TE, True)
    return q_TNE.transpose(0, 1)[None], k_TNE.transpose(0, 1)[None]
