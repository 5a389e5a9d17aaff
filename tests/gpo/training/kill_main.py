"""Trains the tiny model in children that get SIGKILL at every place of every step, and in new ones to the end.

    python -m tests.gpo.training.kill_main FOLDER

Everything is imported once; a child is a fork. Prints a JSON line a scenario: what is trained, step and place of the
kill, how the child ended, where the second one went on, and whether its weights are those of an undisturbed training,
to the bit.
"""

import json
import os
import signal
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback

from gpo.training.step_checkpoints import last_whole, step_of
from tests.gpo.training.small_training import make_rows, make_trainer
from tests.tiny import make_tiny_model

STEPS = 8
PLACES = ("before the checkpoint", "inside the checkpoint", "behind the checkpoint")
SCENARIOS = [
    *product(["float32"], range(1, STEPS + 1), PLACES),
    *product(["bfloat16", "adapter", "adamw", "live reference"], [5], PLACES[1:2]),
]
"""What is trained, and step and place of the kill."""
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
    """Kills its own process as soon as a step is made, while its checkpoint is written, or when that lies there."""

    def __init__(self, step: int, place: str) -> None:
        self._step, self._place = step, place

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step, self._place) == (self._step, PLACES[0]):
            die()
        if (state.global_step, self._place) == (self._step, PLACES[1]):
            Trainer._save_optimizer_and_scheduler = lambda *_: die()  # type: ignore[method-assign]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step, self._place) == (self._step, PLACES[2]):
            die()


def options_of(trained: str) -> dict[str, Any]:
    """The masters are float32 in any case; beside an adapter that was trained before lies a copy, the reference."""
    if trained == "adamw":
        return {"optim": "adamw_torch"}
    if trained == "live reference":
        return {"precompute_ref_log_probs": False}
    if trained != "adapter":
        return {"bf16": trained == "bfloat16"}
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return {"model": get_peft_model(make_tiny_model(), adapter)}


def train(folder: Path, trained: str, die_at: tuple[int, str] | None) -> None:
    callbacks = [] if die_at is None else [DieAt(*die_at)]
    trainer = make_trainer(folder, make_rows(prompts=8), callbacks=callbacks, **SETTINGS, **options_of(trained))
    trainer.train(resume_from_checkpoint=True)
    torch.save(trainer.model.state_dict(), folder / "weights.pt")


def in_child(folder: Path, trained: str, die_at: tuple[int, str] | None = None) -> int:
    """Exit status, or minus the signal that ended it."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        with (folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                train(folder, trained, die_at)
            except BaseException as error:  # a child must never go on as its parent
                print(repr(error), flush=True)
                os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """What is trained first undisturbed, then with each kill."""
    base, expected = Path(sys.argv[1]), {}
    for trained in dict.fromkeys(trained for trained, _, _ in SCENARIOS):
        assert in_child(base / trained, trained) == 0, (base / trained / "log.txt").read_text()
        expected[trained] = torch.load(base / trained / "weights.pt")
    for number, (trained, step, place) in enumerate(SCENARIOS):
        folder, whole = base / f"killed-{number}", expected[trained]
        killed = in_child(folder, trained, (step, place))
        found = last_whole(folder / "steps")
        finished = in_child(folder, trained)
        weights = torch.load(folder / "weights.pt") if finished == 0 else {}
        same = weights.keys() == whole.keys() and all(torch.equal(weights[name], whole[name]) for name in whole)
        line = {"trained": trained, "step": step, "place": place, "killed": killed, "finished": finished, "same": same}
        print(json.dumps({**line, "resumed_from": step_of(found) if found else 0}), flush=True)


if __name__ == "__main__":
    main()
