"""SIGKILL of each process in the middle of its stage; then the same command until it ends well."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from rollout.records import read_shard
from tests.e2e.tiny_run import (
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


def generating(out):
    return shard_lines(out)


def training(out):
    return list((out / "logs").glob("learner-*.log"))


@pytest.mark.parametrize(
    ("title", "moment"),
    [(None, generating), ("ray::Sampler", generating), ("ray::ShardScorer", generating), ("RayTrainWorker", training)],
    ids=["driver", "sampler", "scorer", "learner"],
)
def test_a_killed_process_costs_only_the_work_in_flight(config, undisturbed, title, moment):
    out = config.parent / f"killed-{title or 'driver'}".replace(":", "-")
    process = subprocess.Popen(
        command(config, out, "iterations=1"),
        env=environment(),
        cwd=config.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: moment(out), process, "the moment to kill")
    below = psutil.Process(process.pid).children(recursive=True)
    victims = descendants(process, title) if title else [psutil.Process(process.pid)]
    assert victims, f"no process {title}"
    os.kill(victims[0].pid, signal.SIGKILL)
    written = {path: path.stat().st_mtime_ns for path in (out / "iterations/001/rollouts").glob("shard-*.parquet")}
    assert written
    status = process.wait(timeout=300)
    starts = 1
    while status != 0 and starts < MOST_STARTS:
        starts += 1
        status = run_to_end(config, out, "iterations=1").returncode
    assert status == 0
    for path, changed in written.items():
        assert path.stat().st_mtime_ns == changed, f"{path.name} was finished and is written again"
    assert answers(out) == undisturbed, "the seeds promise the same tokens"
    stages = [line["stage"] for line in journal(out) if line["event"] == "stage" and line["iteration"] == 1]
    assert stages == ["generate", "train", "publish", "evaluate"]
    assert sorted(line["shard"] for line in shard_lines(out)) == sorted({line["shard"] for line in shard_lines(out)})
    assert all(gone(child) for child in below), "processes of the first start are left running"


def gone(process, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return False
