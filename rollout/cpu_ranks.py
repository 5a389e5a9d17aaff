"""Ranks of sampled tokens without a compiler, for engines on a CPU: a plugin, found by its entry point.

With every token vLLM tells how many tokens of the vocabulary were as likely, and counts them in a function of its own
that torch.compile makes anew in each process: seconds before an engine's first token, ten where g++ has not seen this
size of vocabulary yet, and no engine at all where there is no g++.
Written for vLLM 0.32; `tests/contract/test_vllm_ranks.py` names what it leans on. Loaded once per process.
"""

import numpy as np
import torch
from torch import Tensor


def register() -> None:
    """Have vLLM's sampler count by numpy where its platform is a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.sample.ops import logprobs

        setattr(logprobs, "batched_count_greater_than", count_at_least)  # noqa: B010


def count_at_least(x_BV: Tensor, bound_B1: Tensor) -> Tensor:
    """[B] How many numbers of each row are at least its bound; row by row, so that a row stays in the cache."""
    rows = zip(x_BV.numpy(), bound_B1.numpy(), strict=True)
    return torch.tensor([np.count_nonzero(row >= bound) for row, bound in rows])
