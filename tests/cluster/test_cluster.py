"""Runs on a real Ray cluster of a head and three nodes, each a host of its own in a network namespace.

The short form (a cluster that is too small, an address where none is) is part of the default suite where namespaces
can be made; `make cluster` adds a run, submitted runs, a node's death in every stage, moving a run, and nodes without
a shared disk. Run: make cluster
"""

import json
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.frame import asked_report, at_most, write_report
from gpo.cluster.following import STOP_SECONDS
from tests.cluster.namespaces import namespaced_cluster, namespaces_can_be_made
from tests.cluster.workplace import (
    FEW_AT_ONCE,
    FORWARD,
    LEARNER,
    PLACEMENT,
    RUN_SECONDS,
    SAMPLER,
    SCORER,
    Watch,
    answers,
    finished_stages,
    gpo_run,
    gpo_submit,
    hosts_of,
    new_workplace,
    wait_for,
)
from tests.e2e.tiny_run import environment, journal

pytestmark = pytest.mark.skipif(not namespaces_can_be_made(), reason="needs root and iproute2 for network namespaces")
STAGES = ["baseline", "generate", "train", "publish", "evaluate"]
CPUS = 3
MOST_STARTS = 3
MOST_SECONDS_MORE, MOST_SECONDS_SILENT = 15, 10
START_SECONDS = 180
"""For Python, the libraries and the checks of a config, also on a busy machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def config(folder):
    return new_workplace(folder / "work")


@pytest.fixture(scope="module")
def cluster(folder):
    with namespaced_cluster(folder, workers=3, cpus=CPUS) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster, config, folder):
    """(token ids, seconds, hosts of every kind of process) of a run that nothing disturbed."""
    out = folder / "undisturbed"
    started = time.monotonic()
    with Watch(cluster) as watch:
        done = cluster.run(
            cluster.head, gpo_run(config, out, *PLACEMENT, f"cluster.address={cluster.address}"), RUN_SECONDS
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished_stages(out) == STAGES
    return answers(out), time.monotonic() - started, watch.seen


@pytest.mark.long
def test_a_run_has_its_samplers_scorer_and_learners_on_different_nodes(cluster, undisturbed):
    _, _, seen = undisturbed
    workers = {host.address for host in cluster.hosts[1:]}
    assert len(seen[SAMPLER]) == 2 and len(seen[LEARNER]) == 2 and len(seen[SCORER]) == 1
    assert set().union(*seen.values()) == workers, "every node has work, and the head none"


@pytest.mark.long
def test_a_submitted_run_ends_with_its_status_and_costs_little_more(cluster, config, folder, undisturbed):
    tokens, seconds, _ = undisturbed
    out = folder / "submitted"
    words = gpo_submit(cluster, config, out, *PLACEMENT)
    started = time.monotonic()
    done = cluster.run(cluster.head, words, RUN_SECONDS)
    overhead = time.monotonic() - started - seconds
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    state = json.loads((out / "run.json").read_text())
    own = state["updated"] - state["started"]
    print(f"gpo run {seconds:.1f} s, gpo submit {overhead:+.1f} s; the job's run alone {own:.1f} s")
    assert finished_stages(out) == STAGES and answers(out) == tokens
    assert "ray job stop" in done.stdout and "checkpoint:" in done.stdout, "the way to stop, and the job's own output"
    assert cluster.token not in done.stdout + done.stderr
    claim = at_most("gpo submit / gpo run: seconds more", overhead, MOST_SECONDS_MORE)
    write_report({"run_seconds": seconds}, [claim], asked_report("submit"))
    assert overhead < MOST_SECONDS_MORE, "on a machine that does nothing else"


@pytest.mark.long
def test_a_jobs_mistake_comes_back_as_status_two(cluster, config, folder):
    words = gpo_submit(cluster, config, folder / "no", "policy.model=/not/there")
    done = cluster.run(cluster.head, words, RUN_SECONDS)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "/not/there: no config.json" in done.stdout


def test_too_small_a_cluster_is_told_within_ten_seconds_and_nothing_hangs(cluster, config, folder):
    address = f"cluster.address={cluster.address}"
    words = gpo_run(
        config, folder / "small", *PLACEMENT, address, "cluster.samplers=20", "cluster.placement_seconds=12"
    )
    with (folder / "told").open("w+") as told:
        begun = time.monotonic()
        process = cluster.popen(cluster.head, words, stderr=told, stdout=subprocess.DEVNULL)
        wait_for(lambda: journal(folder / "small"), "first line of the journal", START_SECONDS)
        started = time.monotonic()
        wait_for(lambda: "lacks" in (folder / "told").read_text(), "word of what is missing", 60)
        now = time.monotonic()
        print(f"told {now - begun:.1f} s after the command's start, {now - started:.1f} s after its config was checked")
        claim = at_most(
            "too small a cluster: seconds from the checked config until it is told", now - started, MOST_SECONDS_SILENT
        )
        write_report({}, [claim], asked_report("preflight"))
        assert now - started < MOST_SECONDS_SILENT
        assert process.wait(60) == 2
    lines = journal(folder / "small")
    message = (folder / "told").read_text()
    assert [line["event"] for line in lines] == ["start", "failed"], "no stage was begun"
    assert "20 samplers of 1 CPU each: the cluster has room for 9, and for 9 of them now" in message
    assert f"node {cluster.hosts[1].address}: {CPUS} of {CPUS} CPU free" in message
    assert "waiting up to 12 s more" in message and "lacks, after 12 s" in message


def test_an_address_where_nothing_answers_is_told_within_ten_seconds(cluster, config, folder):
    nobody = cluster.head.address.rpartition(".")[0] + ".200"
    words = gpo_run(config, folder / "nowhere", f"cluster.address={nobody}:6379")
    started = time.monotonic()
    done = cluster.run(cluster.head, words, START_SECONDS)
    whole = time.monotonic() - started
    assert done.returncode == 2 and "nothing answers there" in done.stderr
    first, *_, last = (line["time"] for line in journal(folder / "nowhere"))
    print(f"told {whole:.1f} s after the command's start, {last - first:.1f} s after its config was checked")
    assert last - first < 10


def begun(out, stage, iteration=1):
    keys = {"event": "begin", "stage": stage, "iteration": iteration}
    return [line for line in journal(out) if keys.items() <= line.items()]


def a_shard_is_there(out):
    return [line for line in journal(out) if line["event"] == "shard"]


def a_baseline_shard_is_there(out):
    return list((out / "iterations/001/baseline").rglob("shard-*.parquet"))


KILLS = {
    "canary": (FORWARD, lambda out: begun(out, "canary", 0), ()),
    "answer": (SAMPLER, lambda out: begun(out, "answer", 0), ()),
    "baseline": (SAMPLER, a_baseline_shard_is_there, ("baseline.kind=initial", *FEW_AT_ONCE)),
    "generate-sampler": (SAMPLER, a_shard_is_there, FEW_AT_ONCE),
    "generate-scorer": (SCORER, a_shard_is_there, FEW_AT_ONCE),
    "train": (LEARNER, lambda out: list((out / "logs").glob("learner-*.log")), ()),
    "publish": (SAMPLER, lambda out: begun(out, "publish"), ()),
    "evaluate": (SCORER, lambda out: begun(out, "evaluate"), ()),
}
"""What runs on the node that dies, when it dies, and settings of such a run."""


@pytest.mark.long
@pytest.mark.parametrize(("stage", "verb"), [*((stage, "run") for stage in KILLS), ("generate-sampler", "submit")])
def test_a_node_that_dies_costs_only_the_work_in_flight(cluster, config, folder, undisturbed, stage, verb):
    title, moment, settings = KILLS[stage]
    out = folder / f"kill-{stage}-{verb}"
    if verb == "run":
        words = gpo_run(config, out, *PLACEMENT, *settings, f"cluster.address={cluster.address}")
    else:
        words = gpo_submit(cluster, config, out, *PLACEMENT, *settings)
    process = cluster.popen(cluster.head, words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: moment(out) or process.poll() is not None, f"moment of {stage}")
    victim = wait_for(lambda: hosts_of(cluster, title) or process.poll() is not None, title)[0]
    assert victim is not cluster.head, "the head has no work"
    victim.kill()
    try:
        written = {path: path.stat().st_mtime_ns for path in (out / "iterations/001").rglob("shard-*.parquet")}
        status, starts = process.wait(RUN_SECONDS), 1
        while status != 0 and starts < MOST_STARTS:
            starts += 1
            status = cluster.run(cluster.head, words, RUN_SECONDS).returncode
        print(f"{stage}: node {victim.address} died, {starts} start(s)")
        assert status == 0 and finished_stages(out) == STAGES
        assert answers(out) == undisturbed[0], "the seeds promise the same tokens"
        assert len(a_baseline_shard_is_there(out)) == (8 if stage == "baseline" else 0)
        assert all(path.stat().st_mtime_ns == when for path, when in written.items()), "what was finished stays"
    finally:
        cluster.start(victim, CPUS)


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_elsewhere_with_other_pools(cluster, config, folder, undisturbed):
    out = folder / "moved"
    words = gpo_run(config, out, *PLACEMENT, *FEW_AT_ONCE, f"cluster.address={cluster.address}")
    process = cluster.popen(cluster.head, words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: a_shard_is_there(out), "a shard")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    first = {line["shard"] for line in a_shard_is_there(out)}
    assert 0 < len(first) < 8
    with namespaced_cluster(folder, workers=2, cpus=CPUS) as other:
        there = gpo_run(
            config, out, *PLACEMENT, "cluster.samplers=1", "train.workers=1", f"cluster.address={other.address}"
        )
        done = other.run(other.head, there, RUN_SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
    assert finished_stages(out) == STAGES and answers(out) == undisturbed[0]
    placements = [line["placement"]["cluster"] for line in journal(out) if "placement" in line]
    assert [placement["samplers"] for placement in placements] == [2, 1]
    assert [placement["address"] for placement in placements] == [cluster.address, other.address]
    refused = subprocess.run(
        gpo_run(config, out, "seed=6"), env=environment(), cwd=folder, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "seed: 5 -> 6" in refused.stderr, "an identity key may not change"
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


@pytest.mark.long
@pytest.mark.parametrize("way", ["interrupt", "job-stop"])
def test_a_submitted_run_that_is_stopped_goes_on_with_the_same_command(cluster, config, folder, undisturbed, way):
    out = folder / f"stopped-{way}"
    words = gpo_submit(cluster, config, out, *PLACEMENT, *FEW_AT_ONCE)
    said = folder / f"said-{way}"
    with said.open("w") as stream:
        process = cluster.popen(cluster.head, words, stdout=stream, stderr=subprocess.STDOUT)
        wait_for(lambda: a_shard_is_there(out), "a shard")
        if way == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            job = next(line.split()[1] for line in said.read_text().splitlines() if line.startswith("job "))
            ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", cluster.dashboard, job]
            assert cluster.run(cluster.head, ray, STOP_SECONDS + 30).returncode == 0
        assert process.wait(STOP_SECONDS + 30) == (130 if way == "interrupt" else 143), said.read_text()
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted", "it ended by itself"
    done = cluster.run(cluster.head, words, RUN_SECONDS)
    assert done.returncode == 0, done.stdout[-3000:]
    assert finished_stages(out) == STAGES and answers(out) == undisturbed[0]


@pytest.mark.long
def test_nodes_without_a_shared_disk_get_their_files_through_the_object_store(folder, undisturbed):
    """Each host but the head sees an empty folder of its own where the head has models, prompts and the run.

    With a baseline of older policies, whose files one node writes and another reads.
    """
    shared = folder / "apart"
    config = new_workplace(shared)
    out = shared / "out"
    storage = folder / "storage"
    copied = ("baseline.kind=initial", f"cluster.storage=file://{storage}")
    with namespaced_cluster(folder, workers=3, cpus=CPUS, hidden=shared) as apart:
        words = gpo_run(config, out, *PLACEMENT, f"cluster.address={apart.address}", *copied)
        done = apart.run(apart.head, words, RUN_SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
        own = [host.temporary / "own-disk" for host in apart.hosts[1:]]
        assert all((disk / "policy/config.json").is_file() for disk in own), "the policy was brought to every node"
        assert not any((disk / "out/journal.jsonl").exists() for disk in own), "and the run was not shared after all"
        assert any((disk / "out/iterations/001/checkpoint").is_dir() for disk in own)
    assert finished_stages(out) == STAGES and answers(out) == undisturbed[0]
    assert len(list((out / "iterations/001/baseline/000").glob("shard-*.parquet"))) == 8
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9)), "sixteen prompts, two a step"
    # The copy at the URL is a run directory: elsewhere it is found, and finished.
    moved = folder / "elsewhere" / "out"
    found = subprocess.run(
        gpo_run(config, moved, *copied),
        env=environment(), cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip
    assert found.returncode == 0 and answers(moved) == undisturbed[0], found.stderr[-3000:]
