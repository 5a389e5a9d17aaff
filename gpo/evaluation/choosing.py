"""The chosen checkpoint of a run directory: reads its evaluations, writes `chosen.json`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from gpo.config import RunConfig
from gpo.evaluation.choice import Choice, choose
from gpo.files import read_json, write_json
from gpo.journal import RunDirectory


def choose_checkpoint(directory: RunDirectory, config: RunConfig, iteration: int) -> Choice:
    """Choose among the start and the iterations up to this one, by the config's rule, and keep the choice."""
    judge = config.evaluation.choose_by or config.preference.judge_names()[0]
    choice = choose(evaluations_so_far(directory, iteration), config.evaluation.choose, judge)
    place = directory.checkpoint(choice.iteration) if choice.iteration else config.policy.model
    record = {"format_version": 1, **asdict(choice), "checkpoint": str(place)}
    write_json(directory.root / "chosen.json", record)
    return choice


def evaluations_so_far(directory: RunDirectory, iteration: int) -> Iterator[dict[str, Any]]:
    """What `evaluation.json` of iterations 1 to this one say, one at a time.

    Each names all that came before it: held together they grow with the square of the iterations.
    """
    for number in range(1, iteration + 1):
        yield read_json(directory.evaluation(number))
