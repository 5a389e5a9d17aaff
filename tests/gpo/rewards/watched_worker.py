"""A worker as torchrun starts it that also says what it holds of weights and optimizer states: held-RANK.json.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.gpo.rewards.watched_worker CONFIG [key=value…]
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from gpo.rewards.workers import main
from reward.trainer import PairTrainer


def held_elements(trainer: PairTrainer) -> dict[str, int]:
    """Elements of weights and of optimizer states on this worker."""
    optimizer: Any = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    pieces = [getattr(weight, "ds_tensor", weight) for weight in trainer.pair_model.parameters()]
    return {
        "weights": sum(piece.numel() for piece in pieces),
        "states": sum(value.numel() for value in states if value.dim()),
    }


def watch() -> None:
    """Have `PairTrainer` write the file before its second step, when the optimizer has states."""
    original = PairTrainer.compute_loss

    def compute_loss(self: PairTrainer, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 1:
            Path(f"held-{os.environ['RANK']}.json").write_text(json.dumps(held_elements(self)))
        return original(self, *arguments, **named)

    PairTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


if __name__ == "__main__":
    watch()
    main()
