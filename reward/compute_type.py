"""Which type a model is computed in: the one it is stored in, but never emulated bfloat16 on a CPU."""

import logging

import torch

logger = logging.getLogger(__name__)

SLOW_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")
"""CPU capabilities, as torch names them, for which bfloat16 matrix products are tens of times slower than float32."""


def computes_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16 matrix products."""
    return not device.startswith("cpu") or torch.backends.cpu.get_cpu_capability() not in SLOW_BFLOAT16


def device_here() -> str:
    """cuda where torch finds a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_type(stored: str, device: str) -> str:
    """What `auto` means for a model of a stored type on a device.

    float32 instead of bfloat16 where that would be emulated: every bfloat16 number is a float32 number, so nothing is
    lost but memory.
    """
    if stored == "bfloat16" and not computes_bfloat16(device):
        logger.info("dtype: float32, because this CPU has no instructions for bfloat16, the stored type")
        return "float32"
    return stored
