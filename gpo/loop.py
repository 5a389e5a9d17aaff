"""The story of a run: draw the baseline, generate, score, target, train, publish, evaluate, and again.

Each stage is done once: its line in the journal says so, and a run that is started again goes on behind the last line.
"""

import logging
from collections.abc import Callable
from typing import Any

from gpo import interrupts
from gpo.cluster.runtime import begin_stage
from gpo.context import RunContext
from gpo.evaluation.heldout import answer_heldout, evaluate
from gpo.publishing import measure_noise_floor, publish
from gpo.rollouts.baseline_stage import draw_baseline
from gpo.rollouts.stage import generate_and_score
from gpo.training.stage import train
from gpo.verification import hashes_left

logger = logging.getLogger(__name__)


def self_play(run: RunContext) -> None:
    """All iterations of a run; raises StageError naming the stage that cannot go on."""
    once(run, "canary", 0, measure_noise_floor)
    once(run, "answer", 0, answer_heldout)
    for iteration in range(1, run.config.iterations + 1):
        once(run, "baseline", iteration, draw_baseline)
        once(run, "generate", iteration, generate_and_score)
        once(run, "train", iteration, train)
        once(run, "publish", iteration, publish)
        once(run, "evaluate", iteration, evaluate)


def once(run: RunContext, stage: str, iteration: int, work: Callable[[RunContext, int], dict[str, Any]]) -> None:
    """Do a stage unless the journal says that it is finished; its line is written after its files."""
    if run.directory.finished(stage, iteration):
        return
    interrupts.check()
    begin_stage()
    run.directory.record("begin", stage=stage, iteration=iteration)
    result = work(run, iteration)
    left = hashes_left(run.directory, stage, iteration)
    run.directory.record("stage", stage=stage, iteration=iteration, **result, **({"left": left} if left else {}))
    run.directory.copy_away()
