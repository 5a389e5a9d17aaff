"""An iteration played on many devices, some of which fail: how long it takes, and how much of the device time counts.

Shards go to the next free sampler, then to the next free scorer (in `colocated` both on the same device, in turn), then
all learners train in step. A device that fails loses what it had in hand, is away for `repair_seconds`, and its shard
is drawn again; a failed learner takes all learners back to the last step checkpoint. Failures are exponential with one
mean for every device; an engine over several fails when one of them does. Nothing here reads a clock: the same seed
gives the same play.
"""

import heapq
import random
from dataclasses import dataclass
from typing import Any

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.planning.rates import Rates, balanced_pools

MOST_TRIES_LOG = 7.0
"""A piece of work that is tried more than a thousand times is not waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What is played: sizes, and seconds of work."""

    devices: int
    samplers: int
    """Engines (in `colocated`: on all devices)."""
    scorers: int
    learners: int
    colocated: bool
    shards: int
    sample_seconds: float
    """One sampler, one shard, on average."""
    score_seconds: float
    """One scorer, one shard."""
    train_seconds: float
    """All learners, the whole iteration."""
    publish_seconds: float = 0.0
    hours_between_failures: float | None = None
    """Of one device; None: none fails."""
    repair_seconds: float = 300.0
    checkpoint_seconds: float = 600.0
    """Training that lies between two step checkpoints."""
    engine_devices: int = 1
    """Devices of one engine (tensor parallel)."""
    uneven: float = 0.2
    """Shards take between 1 - uneven and 1 + uneven of the mean time."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one iteration."""

    seconds: float
    generate_seconds: float
    train_seconds: float
    failures: int
    goodput: float
    """Device seconds whose work stayed, over all device seconds: in [0, 1]."""
    lost_to_failures: float
    """Share of device seconds that failed work and repairs took."""


def play(what: Play) -> Outcome:
    """One iteration from the first shard to published weights; raises UserError where failures let none be finished."""
    chance = random.Random(what.seed)
    generated, failed, lost = _generate(what, chance)
    trained, train_failures, train_lost = _train(what, chance)
    seconds = generated + trained + what.publish_seconds
    total = what.devices * seconds
    rollout = what.shards * (what.engine_devices * what.sample_seconds + what.score_seconds)
    useful = rollout + what.learners * what.train_seconds
    return Outcome(
        seconds=seconds,
        generate_seconds=generated,
        train_seconds=trained,
        failures=failed + train_failures,
        goodput=min(1.0, useful / total) if total else 1.0,
        lost_to_failures=(lost + train_lost) / total if total else 0.0,
    )


def play_of(config: RunConfig, rates: Rates, prompts: int, *, devices: int, **failures: Any) -> Play:
    """The play of a config's iteration on so many devices; pools as large as the devices and the balance make them.

    Raises UserError for fewer devices than the shape needs.
    """
    parts = config.rollout.engine.tensor_parallel
    colocated = config.cluster.shape == "colocated"
    least = parts if colocated else parts + 2
    if devices < least:
        raise UserError(f"--simulate {devices}: cluster.shape={config.cluster.shape} needs {least} devices or more")
    shards = -(-prompts // config.rollout.shard_prompts)
    answers = prompts * config.rollout.samples / shards
    length = min(rates.answer_tokens, config.rollout.max_tokens)
    sample = answers * length / rates.sampled_tokens_a_second
    score = answers / rates.scored_answers_a_second * (length / rates.answer_tokens)
    train = prompts * config.rollout.samples * length * config.train.epochs / rates.trained_tokens_a_second
    if colocated:
        samplers, scorers, learners = devices // parts, devices, devices
    else:
        # rollout / r + train / (devices - r) is least where both parts are as the roots of their work.
        rollout = (shards * (sample * parts + score)) ** 0.5
        share = min(max(parts + 1, round(devices * rollout / (rollout + train**0.5))), devices - 1)
        samplers, scorers = balanced_pools(config, rates, share)
        learners = devices - share
    return Play(
        devices=devices,
        samplers=samplers,
        scorers=scorers,
        learners=learners,
        colocated=colocated,
        shards=shards,
        sample_seconds=sample,
        score_seconds=score,
        train_seconds=train / learners,
        publish_seconds=rates.publish_seconds + rates.train_start_seconds + rates.generate_overhead_seconds,
        engine_devices=parts,
        **failures,
    )


def _next_failure(what: Play, chance: random.Random, devices: int = 1) -> float:
    """Seconds until one of so many devices fails."""
    if what.hours_between_failures is None:
        return float("inf")
    return chance.expovariate(devices / (what.hours_between_failures * 3600))


def _check_progress(what: Play, seconds: float, devices: int, piece: str) -> None:
    """A piece of work of s seconds at a failure rate r is tried exp(r·s) times on average."""
    if what.hours_between_failures is None:
        return
    between = what.hours_between_failures * 3600 / devices
    if seconds > MOST_TRIES_LOG * between:
        raise UserError(
            f"the play never ends: {piece} takes {seconds:.0f} s of {devices} devices, of which one fails every "
            f"{between:.0f} s; give longer --hours-between-failures, shorter --checkpoint-seconds or smaller shards"
        )


def _generate(what: Play, chance: random.Random) -> tuple[float, int, float]:
    """(seconds, failures, device seconds lost) until the last shard is scored."""
    if what.colocated:
        # An engine's devices score its shard together.
        both = what.sample_seconds + what.score_seconds / what.engine_devices
        done = _pool(what, chance, what.samplers, [0.0] * what.shards, both, what.engine_devices)
        return max(done.finished, default=0.0), done.failures, done.lost
    samples = _pool(what, chance, what.samplers, [0.0] * what.shards, what.sample_seconds, what.engine_devices)
    scores = _pool(what, chance, what.scorers, sorted(samples.finished), what.score_seconds)
    return max(scores.finished, default=0.0), samples.failures + scores.failures, samples.lost + scores.lost


@dataclass(slots=True)
class _PoolOutcome:
    finished: list[float]
    failures: int = 0
    lost: float = 0.0


def _pool(
    what: Play, chance: random.Random, workers: int, ready: list[float], seconds: float, devices: int = 1
) -> _PoolOutcome:
    """Work that is ready at given times (rising), taken in order by the worker that is free first.

    A worker is so many devices.
    """
    _check_progress(what, seconds, devices, "a shard")
    free = [(0.0, _next_failure(what, chance, devices), number) for number in range(workers)]
    heapq.heapify(free)
    outcome = _PoolOutcome([])
    for moment in ready:
        work = seconds * (1 + what.uneven * (2 * chance.random() - 1))
        while True:
            available, fails, number = heapq.heappop(free)
            begin = max(available, moment)
            end = begin + work
            if fails >= end:
                heapq.heappush(free, (end, fails, number))
                outcome.finished.append(end)
                break
            # While idle or at work: what was in hand is lost, and another worker may take it meanwhile.
            outcome.failures += 1
            outcome.lost += devices * (max(0.0, fails - begin) + what.repair_seconds)
            back = max(available, fails) + what.repair_seconds
            heapq.heappush(free, (back, back + _next_failure(what, chance, devices), number))
            moment = max(moment, fails)
    return outcome


def _train(what: Play, chance: random.Random) -> tuple[float, int, float]:
    """(seconds, failures, device seconds lost) of training in step; a failure goes back to the last checkpoint."""
    _check_progress(what, min(what.checkpoint_seconds, what.train_seconds), what.learners, "a step checkpoint")
    clock = done = 0.0
    failures = 0
    fails = _next_failure(what, chance, what.learners)
    while done < what.train_seconds:
        left = what.train_seconds - done
        if fails >= clock + left:
            clock += left
            break
        reached = done + max(0.0, fails - clock)
        done = reached - reached % what.checkpoint_seconds
        clock = max(clock, fails) + what.repair_seconds
        failures += 1
        fails = clock + _next_failure(what, chance, what.learners)
    return clock, failures, (clock - what.train_seconds) * what.learners
