"""Which type a model is computed in: the one it is stored in, but never emulated bfloat16 on a CPU."""

import logging

import torch

logger = logging.getLogger(__name__)

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What torch calls instructions for bfloat16 matrix products, on x86-64 and on ARM. AVX-512 alone has none."""


def computes_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16 matrix products; emulated they take many times longer."""
    if not device.startswith("cpu"):
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in _INSTRUCTIONS)


def device_here() -> str:
    """cuda where torch finds a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_emulated(stored: str, device: str) -> bool:
    """Whether a device has no instructions for products of a type."""
    return stored == "bfloat16" and not computes_bfloat16(device)


def compute_type(stored: str, device: str) -> str:
    """What `auto` means for a model of a stored type on a device; a change is logged with its reason.

    float32 instead of bfloat16 where that would be emulated: every bfloat16 number is a float32 number, so nothing is
    lost but memory.
    """
    if is_emulated(stored, device):
        logger.info("dtype: float32, because this CPU has no instructions for bfloat16, the stored type")
        return "float32"
    return stored
