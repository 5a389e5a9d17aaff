"""One of several training workers, a process of its own: trains the tiny model and leaves what the tests look at.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.gpo.worker_main FOLDER '{"sharding": "zero3"}'

The first worker writes outcome.pt: losses, first gradients (plain workers), whole weights, and the model directory.
Every worker writes held-RANK.json: elements of parameters and optimizer states that it holds itself.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from gpo.workers import sharding_arguments, whole_state, work_alone
from tests.gpo.small_training import Gradients, make_rows, make_trainer, steps_of


def held_elements(trainer: Any) -> dict[str, int]:
    """Elements of parameters and of optimizer states on this worker."""
    states = 0
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        states += sum(value.numel() for value in state.values() if torch.is_tensor(value) and value.dim() > 0)
    pieces = [getattr(p, "ds_tensor", p) for p in trainer.model.parameters()]
    return {"parameters": sum(piece.numel() for piece in pieces), "states": states}


def main() -> None:
    """Train, save, and say what is held."""
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    sharding = sharding_arguments(settings.pop("sharding", "none"))
    prompts, resume = settings.pop("prompts", 5), settings.pop("resume", False)
    rank = int(os.environ.get("RANK", 0))
    if os.environ.get("WORLD_SIZE", "1") == "1":
        work_alone()
    gradients = Gradients()
    callbacks = [] if sharding else [gradients]
    trainer = make_trainer(folder, make_rows(prompts), callbacks=callbacks, **settings, **sharding)
    trainer.train(resume_from_checkpoint=resume)
    (folder / f"held-{rank}.json").write_text(json.dumps(held_elements(trainer)))
    state = whole_state(trainer)
    if rank == 0:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder / "model", state_dict=state)
        found = {"losses": [step["loss"] for step in steps_of(trainer)], "gradients": gradients.first, "weights": state}
        torch.save({**found, "first_ratio": steps_of(trainer)[0]["log_ratio_max_abs"]}, folder / "outcome.pt")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
