"""SIGKILL of each process in the middle of its stage; then the same command until it ends well."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from rollout.records import read_shard
from tests.e2e.tiny_run import (
    DEADLINE_SECONDS,
    command,
    descendants,
    environment,
    journal,
    make_workplace,
    run_to_end,
    wait_until,
)

MOST_STARTS = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def undisturbed(config):
    """Token ids by prompt of a run that nothing disturbed."""
    out = config.parent / "undisturbed"
    done = run_to_end(config, out, "iterations=1")
    assert done.returncode == 0, done.stderr
    return answers(out)


def answers(out):
    rows = [row for path in sorted((out / "iterations/001/rollouts").iterdir()) for row in read_shard(path)]
    assert len(rows) == len({row.prompt_id for row in rows}) == 16, "each prompt exactly once"
    return {row.prompt_id: row.completion_ids for row in rows}


def shard_lines(out):
    return [line for line in journal(out) if line["event"] == "shard"]


def after_a_shard(out):
    return shard_lines(out)


def learning(out):
    return list((out / "logs").glob("learner-*.log"))


def begun(stage, iteration):
    """The moment at which a stage has begun."""

    def moment(out):
        keys = {"event": "begin", "stage": stage, "iteration": iteration}
        return [line for line in journal(out) if keys.items() <= line.items()]

    return moment


SAMPLER, SCORER, LEARNER = "ray::Sampler", "ray::ShardScorer", "RayTrainWorker"
CASES = {
    "driver-generate": (None, after_a_shard),
    "sampler-generate": (SAMPLER, after_a_shard),
    "scorer-generate": (SCORER, after_a_shard),
    "learner-train": (LEARNER, learning),
    "driver-publish": (None, begun("publish", 1)),
}
LONG_CASES = {
    "driver-canary": (None, begun("canary", 0)),
    "driver-answer": (None, begun("answer", 0)),
    "driver-train": (None, learning),
    "driver-evaluate": (None, begun("evaluate", 1)),
    "sampler-canary": (SAMPLER, begun("canary", 0)),
    "sampler-answer": (SAMPLER, begun("answer", 0)),
    "sampler-publish": (SAMPLER, begun("publish", 1)),
    "sampler-evaluate": (SAMPLER, begun("evaluate", 1)),
    "scorer-answer": (SCORER, begun("answer", 0)),
    "scorer-evaluate": (SCORER, begun("evaluate", 1)),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.long) for name in LONG_CASES)])
def test_a_killed_process_costs_only_the_work_in_flight(config, undisturbed, case):
    title, moment = {**CASES, **LONG_CASES}[case]
    out = config.parent / case
    process = subprocess.Popen(
        command(config, out, "iterations=1"),
        env=environment(),
        cwd=config.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: moment(out), process, "the moment to kill")
    below = psutil.Process(process.pid).children(recursive=True)
    victim = wait_until(lambda: descendants(process, title), process, title)[0] if title else process
    os.kill(victim.pid, signal.SIGKILL)
    written = {path: path.stat().st_mtime_ns for path in (out / "iterations/001/rollouts").glob("shard-*.parquet")}
    status = process.wait(timeout=DEADLINE_SECONDS)
    starts = 1
    while status != 0 and starts < MOST_STARTS:
        starts += 1
        status = run_to_end(config, out, "iterations=1").returncode
    assert status == 0
    for path, changed in written.items():
        assert path.stat().st_mtime_ns == changed, f"{path.name} was finished and is written again"
    assert answers(out) == undisturbed, "the seeds promise the same tokens"
    stages = [line["stage"] for line in journal(out) if line["event"] == "stage" and line["iteration"] == 1]
    assert stages == ["baseline", "generate", "train", "publish", "evaluate"]
    assert sorted(line["shard"] for line in shard_lines(out)) == sorted({line["shard"] for line in shard_lines(out)})
    assert all(gone(child) for child in below), "processes of the first start are left running"


def gone(process, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return False
