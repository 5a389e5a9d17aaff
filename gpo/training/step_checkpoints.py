"""Checkpoints inside a training: which of them are whole, after a kill at any moment.

transformers writes a checkpoint's files one by one into its final folder. A marker is written when the last is there;
a folder without it is what a kill left behind, and is never resumed from. So an older checkpoint goes only when a newer
one is marked, and its own marker goes first. The marker says how workers held weights and optimizer: pieces of ZeRO fit
as many workers of the same stage only.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpo.files import write_text
from rollout.durable import sync

logger = logging.getLogger(__name__)

MARKER = "whole"
PREFIX = "checkpoint-"
IN_ONE_PIECE = "in one piece"


def how_held(trainer: Any) -> str:
    """How its workers hold weights and optimizer, in words: what a step checkpoint of theirs can be read by."""
    workers = trainer.accelerator.num_processes
    if trainer.is_deepspeed_enabled:
        return f"by {workers} workers with ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    return f"by {workers} workers with FSDP" if trainer.is_fsdp_enabled else IN_ONE_PIECE


def mark_whole(checkpoint: Path, held: str = IN_ONE_PIECE) -> None:
    """Say that every file of the checkpoint is there, on the disk and not on its way to it."""
    for path in (*checkpoint.rglob("*"), checkpoint.parent):
        sync(path)
    write_text(checkpoint / MARKER, f"every file of this checkpoint was written, {held}\n")


@contextmanager
def writing(trainer: Any) -> Iterator[None]:
    """Within, all workers of a trainer write the checkpoint of its step; then it is marked, and older ones go.

    An old checkpoint of that step, which a training that begins anew in the folder writes over, is torn from the first
    file on. transformers would remove older ones while this one is not marked, so its limit is set aside.
    """
    args, wait = trainer.args, trainer.accelerator.wait_for_everyone
    checkpoint = Path(str(args.output_dir)) / f"{PREFIX}{trainer.state.global_step}"
    if args.should_save:
        (checkpoint / MARKER).unlink(missing_ok=True)
    wait()
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
    wait()
    if args.should_save:
        mark_whole(checkpoint, how_held(trainer))
        drop_older(checkpoint, limit, trainer.state.best_model_checkpoint)


def drop_older(kept: Path, limit: int | None, best: str | None = None) -> None:
    """Remove the oldest checkpoints beside `kept` until `limit` are left, never the best; torn ones go first.

    None, and a limit below 1, keep all.
    """
    from transformers.trainer_utils import sort_checkpoints

    if limit is None or limit < 1:
        return
    found = [Path(path) for path in sort_checkpoints(str(kept.parent), use_mtime=True)]
    spared = {kept, Path(best or kept)} & set(found)
    others = sorted((path for path in found if path not in spared), key=lambda path: (path / MARKER).is_file())
    for checkpoint in others[: max(0, len(found) - max(limit, len(spared)))]:
        remove(checkpoint)


def drop_all_but_best(trainer: Any) -> None:
    """What transformers does at a training's end that keeps one checkpoint, without ever a marker on half of one."""
    best = trainer.state.best_model_checkpoint
    if trainer.args.should_save and trainer.args.save_total_limit == 1 and best is not None:
        drop_older(Path(best), 1)


def remove(checkpoint: Path) -> None:
    """Its marker first: whatever a kill leaves is torn."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def last_whole(folder: Path, held: str = IN_ONE_PIECE) -> Path | None:
    """The newest checkpoint that every worker finds whole, and can read as they hold a model; None where there is none.

    All workers call this. Those on nodes with disks of their own find different ones, and going on from different
    steps is no training. One that was held in another way is left alone, and said.
    """
    from accelerate.utils import gather_object

    own: dict[int, Path] = {}
    for path in folder.glob(f"{PREFIX}*"):
        if not (path / MARKER).is_file():
            continue
        said = (path / MARKER).read_text("utf-8", errors="replace").strip()  # A damaged one is none that fits.
        if said.endswith(f", {held}"):
            own[step_of(path)] = path
        else:
            logger.warning("%s is not gone on from: now it would be held %s, and %s", path, held, said)
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
