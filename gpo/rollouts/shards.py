"""The prompts of an iteration as shards with fixed ids: which are finished, which wait, which prompts are given up."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from gpo.context import RunContext
from gpo.errors import StageError
from gpo.journal import RunDirectory
from gpo.prompts import TokenizedPrompt
from gpo.rollouts.jobs import Shard

logger = logging.getLogger(__name__)


def shard_slices(run: RunContext, iteration: int) -> Iterator[tuple[int, slice]]:
    """(index, place in the iteration's prompts) of each shard: the same at every start."""
    size = run.config.rollout.shard_prompts
    for index, start in enumerate(range(0, len(run.prompts[iteration - 1]), size)):
        yield index, slice(start, start + size)


def missing_shards(
    run: RunContext, iteration: int, path_of: Callable[[int], Path]
) -> Iterator[tuple[int, str, list[TokenizedPrompt]]]:
    """(index, file, prompts) of shards whose file is not there, one by one, without prompts that were given up."""
    given_up = poison_prompts(run, iteration)
    for index, place in shard_slices(run, iteration):
        path = path_of(index)
        if not path.exists():
            prompts = [item for item in run.prompts[iteration - 1][place] if item.prompt.prompt_id not in given_up]
            yield index, str(path.absolute()), prompts


def poison_prompts(run: RunContext, iteration: int) -> set[str]:
    """Prompts that this iteration gave up, also at an earlier start."""
    return {
        line["prompt_id"]
        for line in run.directory.journal_lines()
        if line.get("event") == "poison" and line.get("iteration") == iteration
    }


def give_up(run: RunContext, iteration: int, stage: str) -> Callable[[Shard, str, str], None]:
    """Record a prompt that ends processes; raises StageError when there are more than the config allows."""

    def record(shard: Shard, prompt_id: str, what: str) -> None:
        run.directory.record(
            "poison", stage=stage, iteration=iteration, shard=shard.index, prompt_id=prompt_id, work=what
        )
        count, most = len(poison_prompts(run, iteration)), run.config.rollout.most_poison_prompts
        if count > most:
            raise StageError(
                f"stage {stage} of iteration {iteration}: {count} prompts end the process that works on them, more "
                f"than rollout.most_poison_prompts = {most}; their ids are in the journal (event `poison`)"
            )

    return record


def shard_numbers(directory: RunDirectory, iteration: int) -> set[int]:
    """Those of an iteration's shards that the journal calls finished."""
    lines = directory.journal_lines()
    return {line["shard"] for line in lines if line.get("event") == "shard" and line.get("iteration") == iteration}
