"""What DeepSpeed does to an autocast on a GPU, for tests on a CPU."""

from typing import Any

import torch
from torch import nn


class Engine(nn.Module):
    """Ends an autocast that is opened around it, as DeepSpeed's engine does (its runtime/torch_autocast.py)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return self.module(*arguments, **named)


def ask_about_the_cpu() -> None:
    """Have DeepSpeed's engine find an autocast of the CPU, as it finds that of a GPU, by which it asks."""
    asked_for = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda device_type="cpu": asked_for(device_type)
