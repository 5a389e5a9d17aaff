"""What earlier starts finished and this one will not compute again: is it still what was written?

Shards have checksums, checkpoints a marker, and so have the master weights that the next training starts from; for the
JSON files of a stage the journal's line of it has hashes. The newest iteration comes first. Hashing a checkpoint takes
about a second a GiB, so after SECONDS no further one is begun; those that a stage uses are verified when it loads them
in any case.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpo.errors import StageError
from gpo.files import file_hash
from gpo.journal import RunDirectory
from gpo.rollouts.shards import shard_numbers
from rollout.errors import RolloutInputError
from rollout.records import check_baseline, check_shard
from rollout.weights import ADAPTER, verified_version

logger = logging.getLogger(__name__)

SECONDS = 60.0
LEFT: dict[str, tuple[Callable[[RunDirectory, int], Path], ...]] = {
    "canary": (RunDirectory.floor,),
    "answer": (RunDirectory.heldout,),
    "train": (RunDirectory.canary,),
    "evaluate": (RunDirectory.heldout, RunDirectory.evaluation),
}
"""Stage -> its JSON files that later stages read."""
WAY_ON = "put a copy in its place{more}, or start anew with --fresh or another --run-dir"


def hashes_left(directory: RunDirectory, stage: str, iteration: int) -> dict[str, str]:
    """What the journal is to say of a stage's JSON files: path from the root -> SHA-256."""
    paths = [place(directory, iteration) for place in LEFT.get(stage, ())]
    return {str(path.relative_to(directory.root)): file_hash(path) for path in paths}


def verify_finished(directory: RunDirectory, iterations: int) -> None:
    """Raises StageError naming the first file of a finished stage that is damaged or gone."""
    end, stages = time.monotonic() + SECONDS, directory.stages()
    for iteration in range(iterations, -1, -1):
        for path, check, more in _to_check(directory, stages, iteration, iterations):
            if time.monotonic() > end:
                logger.warning(
                    "after %.0f s: files of finished stages of iteration %d%s are not verified, from %s on",
                    SECONDS, iteration, " and before" if iteration > 1 else "", path,
                )  # fmt: skip
                return
            try:
                check()
            except (OSError, ValueError, RolloutInputError) as error:
                way_on = WAY_ON.format(more=more)
                raise StageError(
                    f"{path} belongs to a finished stage of iteration {iteration} and is damaged ({error}): {way_on}"
                ) from None


def _to_check(
    directory: RunDirectory, stages: dict[tuple[str, int], dict[str, Any]], iteration: int, iterations: int
) -> Iterator[tuple[Path, Callable[[], object], str]]:
    """(path, what raises when it is damaged, another way on) of what lies there for good."""
    for stage in LEFT:
        for name, sha256 in (stages.get((stage, iteration), {}).get("left") or {}).items():
            yield directory.root / name, partial(_check_hash, directory.root / name, sha256), ""
    if ("train", iteration) in stages:
        checkpoint = directory.checkpoint(iteration)
        is_wanted = ("publish", iteration) not in stages  # Whoever needs the space may remove one that was published.
        for place in (checkpoint, checkpoint / ADAPTER):
            if place.is_dir() or (is_wanted and place == checkpoint):
                yield place, partial(verified_version, place), ""
    if iteration < iterations and ("train", iteration) in stages and ("train", iteration + 1) not in stages:
        master = directory.training(iteration) / "master"
        yield master, partial(verified_version, master), ""
    if ("generate", iteration) not in stages:
        return
    if ("train", iteration) in stages:
        removal = " or remove it, as its iteration is trained"
        folder = directory.iteration(iteration)
        for path in sorted(folder.glob("rollouts/shard-*.parquet")):
            yield path, partial(check_shard, path), removal
        for path in sorted(folder.glob("baseline/*/shard-*.parquet")):
            yield path, partial(check_baseline, path), removal
        return
    for number in shard_numbers(directory, iteration):
        path = directory.shard(iteration, number)
        yield path, partial(check_shard, path), ""


def _check_hash(path: Path, sha256: str) -> None:
    found = file_hash(path)
    if found != sha256:
        raise ValueError(f"SHA-256 {found[:12]} is not {sha256:.12}, which journal.jsonl says")
