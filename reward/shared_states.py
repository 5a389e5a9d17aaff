"""States at places that may come more than once, whose gradients are added in one order.
What it is: the way to take rows of a tensor where answers share the place behind their prompt. Behind `states[place]`
torch 2.13 on a CPU adds the gradients of a row by several threads at once, from 32,768 numbers on and in any order, and
so it does behind `index_select` on a GPU; two trainings of the same rows then differ in their last bits.

Shape suffixes: F rows, N places, H hidden size.
"""

import torch.nn.functional as F
from torch import Tensor


def states_at(states_FH: Tensor, place_N: Tensor) -> Tensor:
    """states_NH at the places, each of which is a row of states_FH."""
    return F.embedding(place_N, states_FH)
