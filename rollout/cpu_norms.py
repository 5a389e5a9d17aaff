"""vLLM's own compiled RMS norms for engines on a CPU that compile nothing: a plugin, found by its entry point.

vLLM counts on torch.compile to fuse a norm's six passes over its input, and starts its eager engines on a CPU with
plain torch for them, although its CPU build has both norms in C++, several times as fast. As a
plugin this reaches every engine, the policy's and the scorer's, in whatever process it runs.
Written for vLLM 0.32; `tests/contract/test_vllm_norms.py` names what it leans on. Loaded once per process.
"""

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PROVIDER = "gpo_cpu"
"""Its name among vLLM's providers of an operation."""
VECTOR = 16
"""Numbers that the norms take at once: they refuse a width that is no multiple of 8 or 16, by the build."""
ROUNDS_HALVES = torch.cpu._is_avx512_bf16_supported()
"""Whether vLLM has a build for this processor that rounds to bfloat16; others cut, and double the error of a norm."""


def register() -> None:
    """Offer the norms to vLLM, and have its CPU platform prefer them wherever nothing is compiled."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    current_platform.import_kernels()
    if not all(hasattr(torch.ops._C, name) for name in ("rms_norm", "fused_add_rms_norm")):
        logger.info("engine: norms in plain torch, because this build of vLLM has none for its CPU")
        return
    from vllm import ir

    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes_norm)(_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_sum, inplace=True)(_norm_of_sum)
    setattr(type(current_platform), "get_default_ir_op_priority", classmethod(_priority))  # noqa: B010


def _priority(platform: type, config: Any) -> Any:
    """What an engine of this config computes its operations by."""
    from vllm.config.compilation import CompilationMode
    from vllm.config.kernel import IrOpPriorityConfig

    if config.compilation_config.mode != CompilationMode.NONE:
        return IrOpPriorityConfig.with_default(["native"])
    norms = [PROVIDER, "native"]
    return IrOpPriorityConfig.with_default(["native"], rms_norm=list(norms), fused_add_rms_norm=list(norms))


def _norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""
    found = torch.empty_like(x)
    torch.ops._C.rms_norm(found, x, weight, epsilon)
    return found


def _takes_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    plain = variance_size is None and weight is not None and weight.dtype == x.dtype
    plain = plain and (x.dtype == torch.float32 or ROUNDS_HALVES)
    return plain and x.is_contiguous() and x.shape[-1] % VECTOR == 0


def _norm_of_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """(norm of x + x_residual, x + x_residual), in the memory of the two."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _takes_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _takes_norm(x, weight, epsilon, variance_size) and x_residual.is_contiguous()
