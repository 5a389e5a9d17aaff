"""Pools with a least number on a cluster that grows: Ray 2.60's own autoscaler, with its nodes on one machine.

Run: make cluster
"""

import subprocess

import pytest

from tests.cluster.namespaces import Autoscaler, namespaced_cluster, namespaces_can_be_made
from tests.cluster.workplace import (
    FEW_AT_ONCE,
    RUN_SECONDS,
    SAMPLER,
    answers,
    finished_stages,
    gpo_run,
    new_workplace,
    titles,
    wait_for,
)  # fmt: skip

pytestmark = pytest.mark.skipif(not namespaces_can_be_made(), reason="needs root and iproute2 for network namespaces")
POOLS = (
    "cluster.shape=split", "cluster.samplers=2", "cluster.least_samplers=1", "cluster.threads=1",
    "cluster.sampler_cpus=2", "cluster.scorer_cpus=1", "cluster.learner_cpus=1", "cluster.placement_seconds=240",
)  # fmt: skip
"""Three nodes of two CPUs: one for each sampler, and one for scorer and learner."""
NODES = 3


@pytest.mark.long
def test_a_cluster_without_nodes_grows_to_what_a_run_wants_and_shrinks_after_it(tmp_path):
    config = new_workplace(tmp_path / "work")
    out = tmp_path / "out"
    with namespaced_cluster(tmp_path, workers=0, cpus=0, autoscaler=Autoscaler(NODES, cpus=2)) as cluster:
        raylets = lambda: sum("raylet/raylet" in line for line in titles(cluster.head))  # noqa: E731
        assert raylets() == 1, "the head alone, without a CPU"
        words = gpo_run(config, out, *POOLS, *FEW_AT_ONCE, f"cluster.address={cluster.address}")
        with (tmp_path / "said").open("w") as said:
            process = cluster.popen(cluster.head, words, stdout=subprocess.DEVNULL, stderr=said)
            wait_for(lambda: raylets() == 1 + NODES or process.poll() is not None, "third node")
            samplers = lambda: sum(SAMPLER in line for line in titles(cluster.head))  # noqa: E731
            wait_for(lambda: samplers() == 2 or process.poll() is not None, "second sampler")
            status = process.wait(RUN_SECONDS)
        told = (tmp_path / "said").read_text()
        assert status == 0, told[-3000:]
        assert "the cluster lacks" in told and finished_stages(out)[-1] == "evaluate" and len(answers(out)) == 16
        wait_for(lambda: raylets() == 1, "end of the nodes that nobody wants", 120)
