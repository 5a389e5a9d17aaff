"""The choice of a run directory, as `chosen.json` has it.

Run: python -m pytest tests/gpo/evaluation/test_choosing.py
"""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from gpo.evaluation.choice import win_matrix
from gpo.evaluation.choosing import choose_checkpoint, evaluations_so_far
from gpo.evaluation.watch import watched
from gpo.files import write_json
from gpo.journal import RunDirectory
from tests.gpo.evaluation.small_evaluation import read
from tests.gpo.small_runs import run_config

SOURCES = {"taste": "python:taste.py:prefer", "other": "python:other.py:prefer"}


def evaluated_run(root: Path, **rates: list[float]) -> RunDirectory:
    """Iterations with these win rates against the start by each judge, and draws among themselves."""
    directory = RunDirectory(root)
    for number, _ in enumerate(next(iter(rates.values())), start=1):
        judges: dict[str, Any] = {
            judge: {
                "vs_start": {"win_rate": rate[number - 1]},
                "vs": {str(one): {"win_rate": 0.5, "ci95": [0.4, 0.6], "n_prompts": 4} for one in range(1, number)},
            }
            for judge, rate in rates.items()
        }
        write_json(directory.evaluation(number), {"iteration": number, "judges": judges})
    return directory


@pytest.mark.parametrize(
    ("evaluation", "iteration", "judge"),
    [
        ({}, 3, "taste"),
        ({"choose": "best"}, 2, "taste"),
        ({"choose": "best", "choose_by": "other"}, 1, "other"),
    ],
)
def test_the_configs_rule_and_judge_choose(
    tmp_path: Path, evaluation: dict[str, str], iteration: int, judge: str
) -> None:
    directory = evaluated_run(tmp_path, taste=[0.6, 0.8, 0.7], other=[0.7, 0.6, 0.6])
    config = run_config(preference={"judges": ["taste", "other"], "sources": SOURCES}, evaluation=evaluation)
    choice = choose_checkpoint(directory, config, 3)
    kept = read(tmp_path / "chosen.json")
    assert choice.iteration == kept["iteration"] == iteration and kept["judge"] == judge
    assert kept["rule"] == evaluation.get("choose", "last") and kept["checkpoint"] == str(
        directory.checkpoint(iteration)
    )


def test_where_no_iteration_beats_the_start_its_model_is_the_checkpoint(tmp_path: Path) -> None:
    directory = evaluated_run(tmp_path, taste=[0.4, 0.3])
    config = run_config(evaluation={"choose": "best"})
    choose_checkpoint(directory, config, 2)
    kept = read(tmp_path / "chosen.json")
    assert (kept["iteration"], kept["checkpoint"]) == (0, str(config.policy.model))


def test_evaluations_of_many_iterations_are_not_held_together(tmp_path: Path) -> None:
    directory = evaluated_run(tmp_path, taste=[0.5] * 120)
    tracemalloc.start()
    try:
        held = list(evaluations_so_far(directory, 120))
        together = tracemalloc.get_traced_memory()[0]
        del held
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        win_matrix(evaluations_so_far(directory, 120), "taste")
        watched(evaluations_so_far(directory, 120), "taste")
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < together / 4
