"""What earlier starts finished and this one will not compute again: is it still what was written?

The newest iteration comes first. Hashing a checkpoint takes about a second a GiB, so after SECONDS no further one is
begun; those that a stage uses are verified when it loads them in any case.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gpo.errors import StageError
from gpo.journal import RunDirectory
from gpo.rollouts.shards import shard_numbers
from rollout.errors import RolloutInputError
from rollout.records import check_baseline, check_shard
from rollout.weights import ADAPTER, verified_version

logger = logging.getLogger(__name__)

SECONDS = 60.0
WAY_ON = "put a copy in its place{more}, or start anew with --fresh or another --run-dir"


def verify_finished(directory: RunDirectory, iterations: int) -> None:
    """Raises StageError naming the first file of a finished stage that is damaged or gone."""
    end = time.monotonic() + SECONDS
    for iteration in range(iterations, 0, -1):
        for path, check, more in _to_check(directory, iteration):
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


def _to_check(directory: RunDirectory, iteration: int) -> Iterator[tuple[Path, Callable[[], object], str]]:
    """(path, what raises when it is damaged, another way on) of what lies there for good."""
    if directory.finished("publish", iteration):
        checkpoint = directory.checkpoint(iteration)
        for place in (checkpoint, checkpoint / ADAPTER):
            if place.is_dir():
                yield place, partial(verified_version, place), ""
    if not directory.finished("generate", iteration):
        return
    if directory.finished("train", iteration):
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
