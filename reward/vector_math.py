"""A first call of torch's vector functions that is made alone, before several threads make it at once.

oneMKL 2024, which torch's wheels for x86 carry up to 2.13 at least, chooses the code of each of its functions in the
first call. Where two threads make that call, one of them may compute its whole part with about twelve bits
(pytorch/pytorch issue 188792): on a busy machine log-probabilities behind the 64th token were once off by 5e-5, and a
run that went on after a kill had other weights in its last bits.
"""

import functools

import torch

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1"),
    *("log", "log10", "log1p", "log2", "sin", "sqrt", "tan", "tanh", "trunc"),
)
"""What ATen gives to oneMKL's vector library (ATen/cpu/vml.h), and neighbours that cost nothing to include."""


@functools.cache
def settle_vector_math() -> None:
    """Call each function on one number in each type, once a process; some milliseconds."""
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(half)
