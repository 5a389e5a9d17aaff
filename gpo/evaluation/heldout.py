"""Evaluation inside the loop: held-out answers of each checkpoint against the start and all earlier ones."""

import itertools
import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpo.cards import write_policy_card
from gpo.cluster.runtime import collect, deliver, wait_for
from gpo.context import RunContext
from gpo.evaluation.choosing import choose_checkpoint, evaluations_so_far
from gpo.evaluation.heldout_judge import read_answers
from gpo.evaluation.watch import against_length, paired_samples, watched
from gpo.evaluation.winrate import cyclic_share, kl_nats, win_rate
from gpo.files import write_json
from gpo.logs import Progress
from rollout.sampler import SampleReport

logger = logging.getLogger(__name__)


def answer_heldout(run: RunContext, iteration: int) -> dict[str, Any]:
    """Draw and keep the held-out answers of a checkpoint (0 = the start), unless an earlier start did."""
    started = time.monotonic()
    path = run.directory.heldout(iteration)
    if not path.exists():
        run.pool.in_spite_of_deaths(lambda: _draw_heldout(run, iteration, path), "held-out answers")
    rows = read_answers(str(path))
    lengths = [len(ids) for row in rows for ids in row.completion_ids]
    return {
        "seconds": round(time.monotonic() - started, 3),
        "length_tokens": sum(lengths) / len(lengths),
        "ended_share": sum(reason == "stop" for row in rows for reason in row.finish_reason) / len(lengths),
    }


def _draw_heldout(run: RunContext, iteration: int, path: Path) -> None:
    seconds = run.config.cluster.wait_seconds
    samplers = run.pool.samplers(run.weights_after(iteration))
    requests = run.requests(run.heldout, iteration, "heldout")
    sampling = run.sampling(run.config.evaluation.samples)
    size = run.config.rollout.shard_prompts
    parts = [requests[start : start + size] for start in range(0, len(requests), size)]
    asked = [
        sampler.sample.options(num_returns=2).remote(part, sampling)
        for part, sampler in zip(parts, itertools.cycle(samplers), strict=False)
    ]
    progress = Progress(f"iteration {iteration}: held-out answers", len(requests), "prompts")
    progress.update(answered := 0)
    for _, reported in asked:
        report: SampleReport = wait_for(reported, seconds, "a sampler that answers held-out prompts")
        answered += report.prompts
        progress.update(answered)
    kept = run.pool.scorers()[0].keep_answers.remote(str(path.absolute()), *(rows for rows, _ in asked))
    wait_for(kept, seconds, "a scorer that keeps held-out answers")
    collect(path)


def evaluate(run: RunContext, iteration: int) -> dict[str, Any]:
    """Answer, judge and measure; writes evaluation.json and returns what the journal keeps."""
    started = time.monotonic()
    judges = run.config.preference.judge_names()
    answered = answer_heldout(run, iteration)
    progress = Progress(f"iteration {iteration}: judge held-out answers", len(judges) + 1, "parts")
    progress.update(0)
    verdicts: dict[str, Any] = {}
    shares: dict[str, float | None] = {}
    # All are read here, before a judge's process does: a damaged file is told by its name.
    lengths = [_lengths(run, number) for number in range(iteration + 1)]
    for number, judge in enumerate(judges):
        verdicts[judge], shares[judge] = _judge(run, judge, iteration, lengths)
        progress.update(1 + number)
    divergence = _kl_to_start(run, iteration)
    progress.update(1 + len(judges))
    result = {
        "iteration": iteration,
        "judges": verdicts,
        "length_tokens": answered["length_tokens"],
        "ended_share": answered["ended_share"],
        "kl_nats_per_answer": divergence.kl_nats,
        "kl_standard_error": divergence.standard_error,
        "cyclic_share": shares[judges[0]],
        "cyclic_share_by_judge": shares,
    }
    evaluations = itertools.chain(evaluations_so_far(run.directory, iteration - 1), [result])
    result |= watched(evaluations, run.config.preference.train_on)
    for told in [*result["warnings"], result["watch_off"]]:
        if told is not None:
            logger.warning("iteration %d: %s", iteration, told)
    write_json(run.directory.evaluation(iteration), result)
    write_policy_card(run.config, run.directory, iteration)
    choose_checkpoint(run.directory, run.config, iteration)
    return {"seconds": round(time.monotonic() - started, 3)}


def _judge(
    run: RunContext, judge: str, iteration: int, lengths: list[list[list[int]]]
) -> tuple[dict[str, Any], float | None]:
    """Win rates against the start and each earlier iteration, and the share of cyclic triples among own answers.

    `lengths` are those of every iteration's answers, the start's first.
    """
    answers = {str(number): str(run.directory.heldout(number).absolute()) for number in range(iteration + 1)}
    deliver(*map(Path, answers.values()))
    candidate = answers.pop(str(iteration))
    seconds = run.config.cluster.wait_seconds
    found = run.pool.in_spite_of_deaths(
        lambda: wait_for(run.pool.scorers()[0].judge.remote(judge, candidate, answers), seconds, f"the judge {judge}"),
        f"the judge {judge}",
    )
    rates = {name: asdict(win_rate(found.probabilities[name], seed=run.config.seed)) for name in answers}
    rates = {name: {**rate, "ci95": list(rate["ci95"])} for name, rate in rates.items()}
    start = rates.pop("0")
    start |= against_length(*paired_samples(found.probabilities["0"], lengths[iteration], lengths[0]))
    share = cyclic_share([np.asarray(table) for table in found.tables])
    return {"vs_start": start, "vs": rates}, share


def _lengths(run: RunContext, iteration: int) -> list[list[int]]:
    """Tokens of each held-out answer."""
    rows = read_answers(str(run.directory.heldout(iteration)))
    return [[len(ids) for ids in row.completion_ids] for row in rows]


def _kl_to_start(run: RunContext, iteration: int) -> Any:
    """KL(policy || start) in nats an answer, estimated on the policy's own held-out answers."""
    answers = str(run.directory.heldout(iteration).absolute())
    deliver(Path(answers))
    prompts = run.config.evaluation.kl_prompts
    logps = [
        run.forward.ask(partial(_answer_logps, model=model, answers=answers, prompts=prompts), "the KL estimate")
        for model in (run.weights_after(iteration).directory, str(Path(run.config.policy.model).absolute()))
    ]
    return kl_nats(*logps)


def _answer_logps(actor: Any, model: str, answers: str, prompts: int) -> Any:
    return actor.answer_logps.remote(model, answers, prompts)
