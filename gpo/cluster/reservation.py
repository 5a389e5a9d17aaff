"""Devices that a run holds on a Ray cluster: preflight, placement groups, and waits that say what is missing.

An autoscaler is asked for nodes for all, as long as the run lasts. Samplers and scorers get a place each in a placement
group of their kind's least number; more groups follow while the cluster has room for them beside the learners. A place
whose node dies is moved by Ray as soon as another node has room. Learners are placed by Ray Train, in a group of its
own; their room is looked for before it starts.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpo import interrupts
from gpo.cluster.placement import Demand, Node, demands, learners_apart, processes_that_fit, what_is_missing
from gpo.config import ClusterConfig, RunConfig
from gpo.errors import StageError, UserError, reason_of

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

logger = logging.getLogger(__name__)

RESERVED = ("sampler", "scorer")
POLL_SECONDS = 0.5
REPORT_EVERY_SECONDS = 10.0
NEXT_STEP = (
    "add nodes, lower cluster.samplers, cluster.scorers, train.workers or what each reserves (cluster.*_cpus, "
    "cluster.*_gpus), or wait longer with cluster.placement_seconds"
)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where one process goes: its bundles in a placement group."""

    kind: str
    group: "PlacementGroup"
    bundles: tuple[int, ...]
    resources: dict[str, float]

    def actor_options(self) -> dict[str, Any]:
        """Options for Ray. A process in several parts reserves nothing itself: its parts take the bundles."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        alone = len(self.bundles) == 1
        return {
            "num_cpus": self.resources["CPU"] if alone else 0,
            "num_gpus": self.resources.get("GPU", 0) if alone else 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self.group,
                placement_group_bundle_index=self.bundles[0],
                placement_group_capture_child_tasks=not alone,
            ),
        }

    def environment(self) -> dict[str, str]:
        """What vLLM's Ray executor reads to put its parts on this place's bundles; without a GPU, that it has none.

        Ray 2.60 does not hide GPUs from a process that reserves none.
        """
        if len(self.bundles) == 1:
            return {} if self.resources.get("GPU") else {"CUDA_VISIBLE_DEVICES": ""}
        return {
            "VLLM_RAY_BUNDLE_INDICES": ",".join(str(index) for index in self.bundles),
            "VLLM_RAY_PER_WORKER_GPUS": f"{self.resources['GPU']:g}",
        }


class Reservation:
    """The places of a run. Raises UserError when the cluster does not hold them within `cluster.placement_seconds`."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._demands: dict[str, Demand] = {}
        self._places: list[Place] = []
        self._holders: dict[Place, Any] = {}
        self._count_demands(cluster_nodes())
        want_nodes(config.cluster, list(self._demands.values()))
        try:
            self._hold_places()
        except BaseException:
            self.close()
            raise

    def _hold_places(self) -> None:
        self._wait(self._preflight, UserError)
        if (meeting := learners_apart(list(self._demands.values()))) is not None:
            raise UserError(meeting)
        for kind in RESERVED:
            self._reserve(self._demands[kind], self._demands[kind].least)
        self._wait(self._unplaced, UserError)

    def _count_demands(self, nodes: list[Node]) -> None:
        gpus = any(node.total.get("GPU") for node in nodes)
        self._demands = {demand.kind: demand for demand in demands(self._config, gpus=gpus)}

    def _preflight(self) -> str | None:
        """The first node with GPUs may join late, so what is wanted is counted anew at each look."""
        nodes = cluster_nodes()
        self._count_demands(nodes)
        return what_is_missing(list(self._demands.values()), nodes)

    def close(self) -> None:
        """Nodes are wanted no longer."""
        want_no_nodes(self._config.cluster)

    def _reserve(self, demand: Demand, wanted: int) -> None:
        from ray.util.placement_group import placement_group

        alone = demand.parts == 1
        for processes in [wanted] if alone else [1] * wanted:
            group = placement_group(
                [demand.bundle] * (processes * demand.parts),
                strategy="SPREAD" if alone and self._config.cluster.strategy == "spread" else "PACK",
            )
            for index in range(processes):
                first = index * demand.parts
                bundles = tuple(range(first, first + demand.parts))
                self._places.append(Place(demand.kind, group, bundles, demand.bundle))

    def take(self, kind: str) -> Place:
        """A place for a new process; raises StageError when none is there within `cluster.placement_seconds`."""
        self._wait(lambda: None if self._vacant(kind) else self._shortage(kind), StageError)
        place = self._vacant(kind)[0]
        self._holders[place] = None
        return place

    def hold(self, place: Place, actor: Any) -> None:
        """The place belongs to this actor until `leave`."""
        self._holders[place] = actor

    def leave(self, actor: Any) -> None:
        """The place of an actor that is over may be taken again."""
        self._holders = {place: holder for place, holder in self._holders.items() if holder is not actor}

    def processes(self, kind: str) -> int:
        """How many processes of a kind may be there now: those placed, and never fewer than the least.

        Takes more places first, where there is room that the learners do not need.
        """
        demand = self._demands[kind]
        lacking = demand.processes - sum(place.kind == kind for place in self._places)
        if lacking:
            more = replace(demand, processes=lacking, least=0)
            free = [node.free for node in cluster_nodes()]
            found = processes_that_fit([self._demands["learner"], more], free)[kind]
            if found:
                self._reserve(demand, found)
                logger.info("the cluster has room for %s more", demand.sentence(found))
        return max(demand.least, sum(place.kind == kind for place in self._placed()))

    def wait_for_learners(self) -> None:
        """Raises StageError when the free devices do not hold the learners within `cluster.placement_seconds`."""
        self._wait(lambda: what_is_missing([self._demands["learner"]], cluster_nodes()), StageError)

    @property
    def learners(self) -> Demand:
        """All of them, and what each reserves."""
        return self._demands["learner"]

    def _vacant(self, kind: str) -> list[Place]:
        return [place for place in self._placed() if place.kind == kind and place not in self._holders]

    def _placed(self) -> list[Place]:
        """Places whose bundles lie on nodes that are alive."""
        from ray.util.placement_group import placement_group_table

        alive = {node.node_id for node in cluster_nodes()}
        groups = {place.group.id: place.group for place in self._places}
        nodes = {key: placement_group_table(group)["bundles_to_node_id"] for key, group in groups.items()}
        return [
            place for place in self._places if all(nodes[place.group.id].get(index) in alive for index in place.bundles)
        ]

    def _unplaced(self) -> str | None:
        placed = Counter(place.kind for place in self._placed())
        short = [kind for kind in RESERVED if placed[kind] < self._demands[kind].least]
        return "\n".join(self._shortage(kind) for kind in short) or None

    def _shortage(self, kind: str) -> str:
        nodes = cluster_nodes()
        demand = self._demands[kind]
        room = processes_that_fit([demand], [node.free for node in nodes])[kind]
        found = what_is_missing([demand], nodes)
        return found or f"  - {demand.sentence(demand.least)}: not placed yet, though there is room for {room}"

    def _wait(self, missing: Callable[[], str | None], failure: type[UserError] | type[StageError]) -> None:
        wait_for_room(missing, self._config.cluster.placement_seconds, failure, NEXT_STEP)


def wait_for_room(
    missing: Callable[[], str | None], seconds: float, failure: type[UserError] | type[StageError], next_step: str
) -> None:
    """Until nothing is missing; says at once, and every ten seconds, what is. Raises `failure` at the deadline."""
    started = time.monotonic()
    reported = -REPORT_EVERY_SECONDS
    while (found := missing()) is not None:
        interrupts.check()
        waited = time.monotonic() - started
        if waited >= seconds:
            raise failure(f"the cluster lacks, after {waited:.0f} s:\n{found}\n{next_step}")
        if waited - reported >= REPORT_EVERY_SECONDS:
            reported = waited
            logger.warning("waiting up to %.0f s more; the cluster lacks:\n%s", seconds - waited, found)
        time.sleep(POLL_SECONDS)


def want_nodes(cluster: ClusterConfig, wanted: Sequence[Demand]) -> None:
    """Ask an autoscaler for nodes for all processes, where there is one. Only the last call on a cluster counts."""
    if cluster.address is not None:
        _request_resources([demand.bundle for demand in wanted for _ in range(demand.processes * demand.parts)])


def want_no_nodes(cluster: ClusterConfig) -> None:
    """Nodes are wanted no longer: an autoscaler would keep them for ever."""
    import ray

    if cluster.address is None:
        return
    try:
        _request_resources([])
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:  # what ended the run matters more
        logger.warning("the autoscaler was not told that the run is over: %s", reason_of(error))


def _request_resources(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def cluster_nodes() -> list[Node]:
    """Nodes that are alive."""
    import ray
    from ray._private.state import available_resources_per_node  # no public call tells it by node; see tests/contract

    free = available_resources_per_node()
    return [
        Node(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
