"""What a run wants of a cluster, and whether nodes hold it. Pure: resources in, sentences out; no Ray.

A *demand* is a kind of process (sampler, scorer, learner): how many, and the bundles each reserves. In `split` the
three kinds have devices of their own. In `colocated` they take turns on the same GPUs, so each reserves a share of
one: more than half for a sampler, so that no two engines meet on a GPU, and shares that add up to one.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpo.config import ClusterConfig, RunConfig

A_LITTLE_CPU = 0.01
"""What a process reserves that shares its node's cores: enough for Ray to count it."""
COLOCATED_SHARES = {"sampler": 0.51, "scorer": 0.25, "learner": 0.24}
ROUNDING = 1e-6

Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Demand:
    """Processes of one kind; each reserves `parts` bundles of the same resources."""

    kind: str
    processes: int
    least: int
    bundle: dict[str, float]
    parts: int = 1

    def sentence(self, processes: int | None = None) -> str:
        """Such as `2 samplers of 1 GPU and 4 CPU each`."""
        count = self.processes if processes is None else processes
        what = " and ".join(f"{amount:g} {name}" for name, amount in self.bundle.items() if amount > A_LITTLE_CPU)
        parts = f"{self.parts} parts of " if self.parts > 1 else ""
        return f"{count} {self.kind}{'s' if count != 1 else ''} of {parts}{what or 'no reserved device'} each"


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster: what it registered, and what of it nobody holds now."""

    node_id: str
    address: str
    total: Resources
    free: Resources


def demands(config: RunConfig, *, gpus: bool) -> list[Demand]:
    """What a run reserves, in the order in which it does; `gpus`: whether the cluster has any.

    Where the config says how many GPUs a process takes, they are wanted in any case.
    """
    cluster = config.cluster
    gpus = gpus or any((cluster.sampler_gpus, cluster.scorer_gpus, cluster.learner_gpus))
    kinds = (
        ("sampler", cluster.samplers, cluster.least_samplers, cluster.sampler_cpus, cluster.sampler_gpus),
        ("scorer", cluster.scorers, cluster.least_scorers, cluster.scorer_cpus, cluster.scorer_gpus),
        ("learner", config.train.workers, None, cluster.learner_cpus, cluster.learner_gpus),
    )
    found = []
    for kind, processes, least, cpus, wanted in kinds:
        bundle = {"CPU": cpus or A_LITTLE_CPU}
        parts = 1
        if gpus:
            share = wanted if wanted is not None else _usual_share(cluster.shape, kind)
            bundle |= {"GPU": share} if share else {}
            parts = config.rollout.engine.tensor_parallel if kind == "sampler" else 1
        found.append(Demand(kind, processes, processes if least is None else least, bundle, parts))
    return found


def reward_workers(cluster: ClusterConfig, workers: int, *, gpus: bool) -> Demand:
    """What `gpo reward train` takes: a GPU a worker where the cluster has any, or what the config says."""
    bundle = {"CPU": cluster.learner_cpus or A_LITTLE_CPU}
    if gpus or cluster.learner_gpus:
        bundle["GPU"] = cluster.learner_gpus or 1.0
    return Demand("worker", workers, workers, bundle)


def _usual_share(shape: str, kind: str) -> float:
    return COLOCATED_SHARES[kind] if shape == "colocated" else 1.0


def processes_that_fit(wanted: Sequence[Demand], nodes: Sequence[Resources]) -> dict[str, int]:
    """How many processes of each kind the nodes hold together, by first fit; the least of every kind comes first."""
    room = [_Room(node) for node in nodes]
    held = {demand.kind: 0 for demand in wanted}
    for target in ("least", "processes"):
        for demand in wanted:
            while held[demand.kind] < getattr(demand, target) and _take(demand, room):
                held[demand.kind] += 1
    return held


class _Room:
    """What is left of a node. As Ray does it, a share below one lies on one GPU, the fullest that has room for it."""

    def __init__(self, node: Resources) -> None:
        self._amounts = {name: amount for name, amount in node.items() if name != "GPU"}
        gpus = node.get("GPU", 0.0)
        self._gpus = [1.0] * int(gpus) + ([gpus % 1] if gpus % 1 else [])

    def take(self, bundle: Resources) -> bool:
        """Take a bundle where there is room for it."""
        others = {name: amount for name, amount in bundle.items() if name != "GPU"}
        if any(self._amounts.get(name, 0.0) < amount - ROUNDING for name, amount in others.items()):
            return False
        share = bundle.get("GPU", 0.0)
        need = min(share, 1.0)
        count = max(1, round(share))
        fitting = sorted((left, index) for index, left in enumerate(self._gpus) if left >= need - ROUNDING)
        if share and len(fitting) < count:
            return False
        for _, index in fitting[:count] if share else []:
            self._gpus[index] -= need
        for name, amount in others.items():
            self._amounts[name] -= amount
        return True


def _take(demand: Demand, room: list[_Room]) -> bool:
    """Take the bundles of one process out of the room; leaves it as it was where they do not all fit."""
    before = copy.deepcopy(room)
    if all(any(node.take(demand.bundle) for node in room) for _ in range(demand.parts)):
        return True
    room[:] = before
    return False


def what_is_missing(wanted: Sequence[Demand], nodes: Sequence[Node]) -> str | None:
    """None where the free resources hold the least of everything; else wanted, registered and free, node by node."""
    free = processes_that_fit(wanted, [node.free for node in nodes])
    short = [demand for demand in wanted if free[demand.kind] < demand.least]
    if not short:
        return None
    registered = processes_that_fit(wanted, [node.total for node in nodes])
    lines = [
        f"{demand.sentence(demand.least)}: the cluster has room for {registered[demand.kind]}, "
        f"and for {free[demand.kind]} of them now"
        for demand in short
    ]
    lines += [f"node {node.address}: {_amounts(node)}" for node in nodes] or ["no node has joined yet"]
    return "\n".join(f"  - {line}" for line in lines)


def learners_apart(wanted: Sequence[Demand]) -> str | None:
    """What to change where Ray would put two learners on one GPU, which NCCL refuses; None where it would not.

    Ray puts a share of a GPU on the fullest that has room for it: those with a sampler and a scorer come first.
    """
    sampler, scorer, learner = wanted
    share, left = learner.bundle.get("GPU", 0.0), learner.processes
    if not share:
        return None
    engines, taken = sampler.processes * sampler.parts, sampler.bundle.get("GPU", 0.0) % 1
    scorers, read = scorer.processes, scorer.bundle.get("GPU", 0.0) % 1
    both = min(engines, scorers) if taken and read else 0
    groups = [(1 - taken - read, both), (1 - taken, engines - both), (1 - read, scorers - both), (1.0, left)]
    for room, devices in sorted(groups):
        if left > 1 and devices and room >= share - ROUNDING:
            if room >= 2 * share - ROUNDING:
                return (
                    f"two of {learner.sentence()} would share a GPU, because only {learner.processes - left} GPUs are "
                    f"taken by others so far that one of them fits; set cluster.samplers and cluster.scorers to "
                    f"{learner.processes}, or cluster.learner_gpus to more than {room / 2:g}"
                )
            left -= devices
    return None


def _amounts(node: Node) -> str:
    names = [name for name in ("CPU", "GPU") if node.total.get(name) or name == "CPU"]
    return ", ".join(f"{node.free.get(name, 0):g} of {node.total.get(name, 0):g} {name} free" for name in names)
