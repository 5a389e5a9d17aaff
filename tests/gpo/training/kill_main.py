"""Trains the tiny model in children that get SIGKILL at every place of every step, and in new ones to the end.

    python -m tests.gpo.training.kill_main FOLDER

Everything is imported once; a child is a fork. Prints a JSON line a scenario: step and place of the kill, how the child
ended, where the second one went on, and whether its weights are those of an undisturbed training, to the bit.
"""

import json
import os
import signal
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from gpo.training.step_checkpoints import last_whole, step_of
from tests.gpo.training.small_training import make_rows, make_trainer

STEPS = 8
PLACES = ("before the checkpoint", "inside the checkpoint", "behind the checkpoint")
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "batch_tokens": 60,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TrainerCallback):
    """Kills its own process as soon as a step is made, or when its checkpoint lies there."""

    def __init__(self, step: int, place: str) -> None:
        self._step, self._place = step, place

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step, self._place) == (self._step, PLACES[0]):
            die()
        if (state.global_step, self._place) == (self._step, PLACES[1]):
            Trainer._save_optimizer_and_scheduler = lambda *_: die()  # type: ignore[method-assign]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step, self._place) == (self._step, PLACES[2]):
            die()


def train(folder: Path, die_at: tuple[int, str] | None) -> None:
    callbacks = [] if die_at is None else [DieAt(*die_at)]
    trainer = make_trainer(folder, make_rows(prompts=8), callbacks=callbacks, **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    torch.save(trainer.model.state_dict(), folder / "weights.pt")


def in_child(folder: Path, die_at: tuple[int, str] | None = None) -> int:
    """Exit status, or minus the signal that ended it."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        with (folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                train(folder, die_at)
            except BaseException as error:  # a child must never go on as its parent
                print(repr(error), flush=True)
                os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Undisturbed first, then a kill at every place of every step."""
    base = Path(sys.argv[1])
    assert in_child(base / "whole") == 0, (base / "whole" / "log.txt").read_text()
    expected = torch.load(base / "whole" / "weights.pt")
    for number, (step, place) in enumerate(product(range(1, STEPS), PLACES)):
        folder = base / f"killed-{number}"
        killed = in_child(folder, (step, place))
        found = last_whole(folder / "steps")
        finished = in_child(folder)
        weights = torch.load(folder / "weights.pt") if finished == 0 else {}
        same = weights.keys() == expected.keys() and all(torch.equal(weights[n], expected[n]) for n in expected)
        line = {"step": step, "place": place, "killed": killed, "finished": finished, "same": same}
        print(json.dumps({**line, "resumed_from": step_of(found) if found else 0}), flush=True)


if __name__ == "__main__":
    main()
