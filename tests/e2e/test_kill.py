"""Each process killed, and the run interrupted, in the middle of a stage; then the same command until it ends well."""

import contextlib
import json
import os
import signal
import subprocess
import time
from contextlib import closing

import psutil
import pytest

from rollout.records import read_shard
from tests.e2e.tiny_run import (
    DEADLINE_SECONDS,
    command,
    descendants,
    environment,
    journal,
    run_to_end,
    wait_until,
)

MOST_STARTS = 3
AGENTS_OF_RAY, MINUTE_OF_RAY = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}, 60.0
"""After a driver that was killed, these look so long for a head that is dead too, and then end."""


def answers(out):
    shards = sorted((out / "iterations/001/rollouts").iterdir())
    rows = [row for path in shards for row in read_shard(path)]
    assert len(rows) == len({row.prompt_id for row in rows}) == 16, "each prompt exactly once"
    return {row.prompt_id: row.completion_ids for row in rows}


def shard_lines(out):
    return [line for line in journal(out) if line["event"] == "shard"]


def after_a_shard(out):
    return shard_lines(out)


def learning(out, starts=1):
    return len(list((out / "logs").glob("learner-*.log"))) >= starts


def begun(stage, iteration):
    """The moment at which a stage has begun."""

    def moment(out):
        keys = {"event": "begin", "stage": stage, "iteration": iteration}
        return [line for line in journal(out) if keys.items() <= line.items()]

    return moment


SAMPLER, SCORER, LEARNER, FORWARD = "ray::LoggedSampler", "ray::ShardScorer", "RayTrainWorker", "ray::ForwardActor"
CASES = {
    "driver-canary": (None, begun("canary", 0)),
    "driver-answer": (None, begun("answer", 0)),
    "driver-generate": (None, after_a_shard),
    "driver-train": (None, learning),
    "driver-publish": (None, begun("publish", 1)),
    "driver-evaluate": (None, begun("evaluate", 1)),
    "sampler-canary": (SAMPLER, begun("canary", 0)),
    "sampler-answer": (SAMPLER, begun("answer", 0)),
    "sampler-generate": (SAMPLER, after_a_shard),
    "sampler-publish": (SAMPLER, begun("publish", 1)),
    "sampler-evaluate": (SAMPLER, begun("evaluate", 1)),
    "scorer-answer": (SCORER, begun("answer", 0)),
    "scorer-generate": (SCORER, after_a_shard),
    "scorer-evaluate": (SCORER, begun("evaluate", 1)),
    "learner-train": (LEARNER, learning),
    "forward-canary": (FORWARD, begun("canary", 0)),
    "forward-evaluate": (FORWARD, begun("evaluate", 1)),
}


class KilledRun:
    """A run of one iteration whose processes are killed; the same command is given until it ends well."""

    def __init__(self, config, out):
        self.config, self.out = config, out
        self.written = {}
        self.below = []
        self.said = out.with_name("said.txt")
        self.start()

    def start(self):
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command(self.config, self.out, "iterations=1"),
                env=environment(),
                cwd=self.config.parent,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def close(self):
        """Leave nothing running when an assertion has failed."""
        if self.process.poll() is None:
            self.below += psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
        for process in self.below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill(self, title, moment):
        """SIGKILL the process with a title, the driver where it is None, once `moment` is there."""
        victims = [] if title else [self.process]

        def moment_with_a_victim():
            # Looked for ahead: it takes as long as some shards.
            victims[:] = victims or descendants(self.process, title)
            return moment(self.out)

        wait_until(moment_with_a_victim, self.process, "the moment to kill")
        victim = wait_until(lambda: victims or descendants(self.process, title), self.process, title)[0]
        self.below += psutil.Process(self.process.pid).children(recursive=True)
        os.kill(victim.pid, signal.SIGKILL)
        for path in (self.out / "iterations/001/rollouts").glob("shard-*.parquet"):
            self.written.setdefault(path, path.stat().st_mtime_ns)
        if title is None:
            self.process.wait(timeout=DEADLINE_SECONDS)

    def interrupt(self, number, moment):
        """Send a signal to the driver once `moment` is there: it ends by itself, resumable, and takes all with it."""
        wait_until(lambda: moment(self.out), self.process, "the moment to interrupt")
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.below += below
        self.process.send_signal(number)
        assert self.process.wait(timeout=60) == 128 + number
        said = self.said.read_text()
        assert "the same command goes on" in said and "Traceback" not in said
        assert json.loads((self.out / "run.json").read_text())["status"] == "interrupted"
        assert left_running(below) == []

    def one_more_shard(self, out):
        return len(shard_lines(out)) > len(self.written)

    def finish(self):
        status = self.process.wait(timeout=DEADLINE_SECONDS)
        starts = 1
        while status != 0 and starts < MOST_STARTS:
            starts += 1
            status = run_to_end(self.config, self.out, "iterations=1").returncode
        assert status == 0
        return starts

    def check_against(self, undisturbed):
        for path, changed in self.written.items():
            assert path.stat().st_mtime_ns == changed, f"{path.name} was finished and is written again"
        assert answers(self.out) == answers(undisturbed), "the seeds promise the same tokens"
        stages = [line["stage"] for line in journal(self.out) if line["event"] == "stage" and line["iteration"] == 1]
        assert stages == ["baseline", "generate", "train", "publish", "evaluate"]
        shards = [line["shard"] for line in shard_lines(self.out)]
        assert sorted(shards) == sorted(set(shards))
        assert not list(self.out.rglob("*.part-*")), "what the killed were writing is left"
        assert set(left_running(self.below)) <= AGENTS_OF_RAY, "processes of an earlier start are left running"
        assert left_running(self.below, MINUTE_OF_RAY) == [], "agents of an earlier start are left running"


def test_one_run_survives_the_death_of_each_of_its_processes_and_a_signal(finished, tmp_path):
    config, undisturbed, _ = finished
    with closing(KilledRun(config, tmp_path / "out")) as run:
        run.kill(FORWARD, begun("canary", 0))
        run.kill(SAMPLER, after_a_shard)
        run.kill(SCORER, run.one_more_shard)
        run.interrupt(signal.SIGINT, run.one_more_shard)
        run.start()
        run.kill(LEARNER, learning)
        run.kill(None, lambda out: learning(out, starts=2))
        run.start()
        run.finish()
        run.check_against(undisturbed)
    lines = journal(run.out)
    lost = {line["process"] for line in lines if line["event"] == "lost"}
    assert {"forward", "scorer", "learner"} <= lost, "the journal tells it; a sampler is missed when it is needed again"
    told = [line["event"] for line in lines if line["event"] in ("interrupted", "restart")]
    assert told == ["interrupted", "restart", "restart"]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_killed_process_costs_only_the_work_in_flight(finished, tmp_path, case):
    config, undisturbed, _ = finished
    with closing(KilledRun(config, tmp_path / "out")) as run:
        run.kill(*CASES[case])
        starts = run.finish()
        run.check_against(undisturbed)
    if starts == 1:
        (role,) = {line["process"] for line in journal(run.out) if line["event"] == "lost"}
        assert case.startswith(role), "the start that lost it says so"


def left_running(processes, seconds=20.0):
    """Names of those processes that still run after so many seconds."""
    end = time.monotonic() + seconds
    while (left := [name for process in processes if (name := name_if_running(process))]) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def name_if_running(process):
    try:
        gone = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        return None if gone else process.name()
    except psutil.NoSuchProcess:
        return None
