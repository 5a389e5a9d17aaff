"""Sums into shared places that torch's threads add to in any order, so that their last bits differ by chance."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class RacingSums(TorchDispatchMode):
    """Collects them within: torch 2.13 adds the gradients of `tensor[index]` atomically on a CPU, from 32,768 numbers
    on by several threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if "index_put" in str(function) and (named.get("accumulate", False) or (len(args) > 3 and args[3])):
            self.found.append(str(function))
        return function(*args, **named)
