"""The generate stage at a second start: what lies there is looked at as closely as what is new.

Run: python -m pytest tests/gpo/rollouts/test_stage.py
"""

from pathlib import Path
from typing import Any

import pytest

from gpo.context import RunContext
from gpo.errors import StageError
from gpo.rollouts.stage import check_targets, generate_and_score
from gpo.rollouts.summary import ShardSummary
from tests.gpo.report_runs import plant_run
from tests.gpo.small_runs import run_config

PROMPTS = 4


def test_targets_that_were_refused_are_refused_again_at_the_next_start(tmp_path: Path) -> None:
    directory = plant_run(tmp_path, prompts=PROMPTS, iterations=1)
    nothing: Any = None  # The only shard is there already, so nothing is sampled.
    config = run_config(tmp_path, target={"beta": 1.0, "largest_nats": 0.001})
    run = RunContext(config, directory, nothing, nothing, [[nothing] * PROMPTS], [])
    with pytest.raises(StageError, match=r"targets reach .* nats.*target\.largest_nats = 0\.001.*--fresh"):
        generate_and_score(run, 1)


def test_targets_that_the_trainer_scales_are_not_judged_by_their_own_size(tmp_path: Path) -> None:
    summary = ShardSummary(1, 2, 9, -400.0, 300.0, None, {}, 0.0)
    with pytest.raises(StageError, match="targets reach 400.0 nats"):
        check_targets(summary, run_config(tmp_path))
    check_targets(summary, run_config(tmp_path, train={"standardise": 2.0}))
