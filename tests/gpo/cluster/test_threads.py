"""CPU threads of a process: what is set aside for it, or its share of the cores of a node, not of the driver's.

Run: python -m pytest tests/gpo/cluster/test_threads.py
"""

import os

import pytest

from gpo.cluster import runtime
from gpo.cluster.placement import Node
from gpo.cluster.runtime import threads_for
from gpo.config import ClusterConfig
from gpo.training.workers import threads_of_worker


def test_threads_are_what_is_given_or_set_aside_or_a_share_of_the_node_with_fewest_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    totals = [{"CPU": 64.0}, {"CPU": 16.0}, {"GPU": 8.0, "CPU": 0.0}]
    nodes = [Node(str(number), "10.0.0.1", total, total) for number, total in enumerate(totals)]
    monkeypatch.setattr(runtime, "cluster_nodes", lambda: nodes)
    here, joined = ClusterConfig(), ClusterConfig(address="auto")
    assert threads_for(here, 2) == 3 and threads_for(joined, 2) == 8
    assert threads_for(joined, 2, reserved=5.0) == 5 and threads_for(here, 2, reserved=0.5) == 1
    assert threads_for(ClusterConfig(address="auto", threads=7), 2, reserved=5.0) == 7


def test_a_training_worker_shares_its_own_nodes_cores_with_the_workers_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Context:
        def get_local_world_size(self) -> int:
            return 4

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr("ray.train.get_context", Context)
    assert threads_of_worker() == 3
