"""What a run wants of nodes, and what is said where they do not hold it: pure, without Ray.

Run: python -m pytest tests/gpo/cluster/test_placement.py
"""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.cluster.placement import Demand, Node, demands, learners_apart, processes_that_fit, what_is_missing
from tests.gpo.small_runs import run_config


def node(name: str = "10.0.0.1", free: dict[str, float] | None = None, **total: float) -> Node:
    return Node(f"id-{name}", name, total, total if free is None else free)


def by_kind(gpus: bool, **changes: Any) -> dict[str, Demand]:
    return {demand.kind: demand for demand in demands(run_config(**changes), gpus=gpus)}


def test_without_gpus_processes_share_a_node_unless_cpus_are_asked_for() -> None:
    found = by_kind(False, cluster={"sampler_cpus": 3}, train={"workers": 2})
    assert found["sampler"].bundle == {"CPU": 3.0} and found["scorer"].bundle == {"CPU": 0.01}
    assert found["learner"].processes == 2
    assert "GPU" not in found["sampler"].bundle


def test_gpus_that_the_config_names_are_wanted_where_none_has_joined_yet() -> None:
    found = by_kind(False, cluster={"shape": "split", "sampler_gpus": 2})
    assert found["sampler"].bundle["GPU"] == 2 and found["learner"].bundle["GPU"] == 1
    told = what_is_missing(list(found.values()), [node(CPU=8)])
    assert told is not None and "1 sampler of 2 GPU each: the cluster has room for 0" in told


def colocated(samplers: int, scorers: int, learners: int, **changes: Any) -> str | None:
    cluster = {"samplers": samplers, "scorers": scorers, **changes}
    return learners_apart(demands(run_config(cluster=cluster, train={"workers": learners}), gpus=True))


def test_learners_that_would_meet_on_a_gpu_are_found_before_the_first_answer() -> None:
    assert colocated(8, 8, 8) is None and colocated(8, 2, 1) is None and colocated(8, 2, 3) is None
    for samplers, scorers, learners in ((8, 2, 4), (2, 8, 8), (4, 4, 8)):
        told = colocated(samplers, scorers, learners)
        assert told is not None and f"two of {learners} learners of 0.24 GPU each would share a GPU" in told
    assert colocated(8, 2, 8, learner_gpus=0.49, scorer_gpus=0) is None
    assert colocated(8, 2, 8, shape="split") is None
    assert learners_apart(demands(run_config(train={"workers": 4}), gpus=False)) is None


@pytest.mark.parametrize("count", [1, 4, 8])
def test_colocated_shares_fill_every_gpu_and_no_two_engines_meet(count: int) -> None:
    changes = {"cluster": {"samplers": count, "scorers": count}, "train": {"workers": count}}
    wanted = demands(run_config(**changes), gpus=True)
    per_device = sum(demand.bundle["GPU"] for demand in wanted)
    assert per_device == pytest.approx(1.0)
    assert wanted[0].kind == "sampler" and wanted[0].bundle["GPU"] > 0.5
    all_of_each = {"sampler": count, "learner": count, "scorer": count}
    assert processes_that_fit(wanted, [{"CPU": 1.0, "GPU": 1.0}] * count) == all_of_each
    assert processes_that_fit(wanted, [{"CPU": 8.0, "GPU": float(count)}]) == all_of_each
    two_a_device = [dataclasses.replace(wanted[0], processes=2 * count)]
    assert processes_that_fit(two_a_device, [{"CPU": 8.0, "GPU": float(count)}]) == {"sampler": count}


def test_split_gives_each_kind_devices_of_its_own_and_tensor_parallel_engines_several() -> None:
    engine = {"engine": {"tensor_parallel": 4}}
    found = by_kind(True, cluster={"shape": "split", "samplers": 2}, rollout=engine)
    assert {kind: demand.bundle["GPU"] for kind, demand in found.items()} == {"sampler": 1, "learner": 1, "scorer": 1}
    assert found["sampler"].parts == 4 and found["scorer"].parts == 1
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 6.0}]
    assert processes_that_fit(list(found.values()), nodes) == {"sampler": 2, "learner": 1, "scorer": 1}


def test_an_engine_larger_than_a_node_spans_several_and_a_part_of_one_takes_nothing() -> None:
    engine = Demand("sampler", 2, 2, {"GPU": 1.0}, parts=4)
    assert processes_that_fit([engine], [{"GPU": 2.0}] * 3) == {"sampler": 1}
    other = Demand("scorer", 2, 2, {"GPU": 1.0})
    assert processes_that_fit([engine, other], [{"GPU": 2.0}] * 3) == {"sampler": 1, "scorer": 2}


def test_the_least_of_every_kind_comes_before_the_rest_of_any() -> None:
    wanted = [Demand("sampler", 8, 1, {"CPU": 1.0}), Demand("scorer", 2, 2, {"CPU": 1.0})]
    assert processes_that_fit(wanted, [{"CPU": 4.0}]) == {"sampler": 2, "scorer": 2}
    assert what_is_missing(wanted, [node(CPU=4)]) is None


def test_what_is_missing_names_wanted_registered_and_free_by_node() -> None:
    wanted = demands(run_config(cluster={"shape": "split", "samplers": 6}), gpus=True)
    nodes = [node("10.0.0.1", CPU=8, GPU=4), node("10.0.0.2", {"CPU": 1.0, "GPU": 0.0}, CPU=8, GPU=4)]
    message = what_is_missing(wanted, nodes)
    assert message is not None
    assert "6 samplers of 1 GPU each: the cluster has room for 6, and for 4 of them now" in message
    assert "node 10.0.0.2: 1 of 8 CPU free, 0 of 4 GPU free" in message
    assert "no node has joined yet" in str(what_is_missing(wanted, []))


amounts = st.integers(0, 6).map(float)
nodes_strategy = st.lists(st.fixed_dictionaries({"CPU": amounts, "GPU": amounts}), max_size=4)
wanted_strategy = st.lists(
    st.builds(
        Demand,
        kind=st.sampled_from(["sampler", "scorer", "learner"]),
        processes=st.integers(1, 5),
        least=st.just(1),
        bundle=st.sampled_from([{"CPU": 1.0}, {"GPU": 0.5, "CPU": 0.5}, {"GPU": 1.0}]),
        parts=st.integers(1, 2),
    ),
    unique_by=lambda demand: demand.kind,
    max_size=3,
)


@given(wanted_strategy, nodes_strategy)
def test_nothing_is_held_twice_and_nothing_beyond_what_is_wanted(
    wanted: list[Demand], nodes: list[dict[str, float]]
) -> None:
    before = [dict(values) for values in nodes]
    held = processes_that_fit(wanted, nodes)
    assert nodes == before, "the nodes are not changed"
    assert all(0 <= held[demand.kind] <= demand.processes for demand in wanted)
    for name in ("CPU", "GPU"):
        taken = sum(held[demand.kind] * demand.parts * demand.bundle.get(name, 0) for demand in wanted)
        assert taken <= sum(values[name] for values in nodes) + 1e-9
