"""Checkpoints inside a training: which of them are whole, after a kill at any moment.

transformers writes a checkpoint's files one by one into its final folder. A marker is written when the last is there;
a folder without it is what a kill left behind, and is never resumed from.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpo.files import write_text

MARKER = "whole"
PREFIX = "checkpoint-"


def mark_whole(checkpoint: Path) -> None:
    """Say that every file of the checkpoint is there."""
    write_text(checkpoint / MARKER, "every file of this checkpoint was written\n")


@contextmanager
def writing(checkpoint: Path, accelerator: Any, marks: bool) -> Iterator[None]:
    """Within, all workers write the checkpoint; `marks` is whether this one sets the marker when they are done.

    An old checkpoint of that step, which a training that begins anew in the folder writes over, is torn from the first
    file on.
    """
    if marks:
        (checkpoint / MARKER).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    yield
    accelerator.wait_for_everyone()
    if marks:
        mark_whole(checkpoint)


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that every worker finds whole; None where there is none. All workers call this.

    Workers on nodes with disks of their own find different ones, and going on from different steps is no training.
    """
    from accelerate.utils import gather_object

    own = {step_of(path): path for path in folder.glob(f"{PREFIX}*") if (path / MARKER).is_file()}
    everyone: list[list[int]] = gather_object([sorted(own)])
    common = set.intersection(*map(set, everyone))
    return own[max(common)] if common else None


def drop_torn(folder: Path) -> None:
    """Remove what kills left behind, so that no other tool resumes from it."""
    for path in folder.glob(f"{PREFIX}*"):
        if not (path / MARKER).is_file():
            shutil.rmtree(path)


def load_trained_adapter(model: Any, checkpoint: Path) -> None:
    """The adapter that is trained, beside which TRL keeps one that is not, `ref`, in a folder of its own.

    transformers 5.19 loads the folders' adapters and then leaves out the one beside them: a resumed training would go
    on from where it began, without an error.
    """
    if hasattr(model, "load_adapter") and (checkpoint / "ref" / "adapter_config.json").is_file():
        model.load_adapter(str(checkpoint), model.active_adapters[0], is_trainable=True)


def step_of(checkpoint: Path) -> int:
    """The number in its name."""
    return int(checkpoint.name.removeprefix(PREFIX))
