"""A worker as torchrun starts it that also says what it holds of weights and optimizer states, and the type that it
computes in: held-RANK.json. DeepSpeed treats autocast in it as on a GPU.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.gpo.rewards.watched_worker CONFIG [key=value…]
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from gpo.rewards.workers import main
from reward.trainer import PairTrainer
from tests.engine import ask_about_the_cpu


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
        types: list[str] = []
        layer: Any = self.pair_model.model.backbone.layers[0].mlp
        hook = layer.register_forward_hook(lambda _module, _inputs, output: types.append(str(output.dtype)))
        loss = original(self, *arguments, **named)
        hook.remove()
        if self.state.global_step == 1:
            held = {**held_elements(self), "computed": types[0]}
            Path(f"held-{os.environ['RANK']}.json").write_text(json.dumps(held))
        return loss

    PairTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


if __name__ == "__main__":
    ask_about_the_cpu()
    watch()
    main()
