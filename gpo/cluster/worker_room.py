"""Room for Ray Train's workers. Ray Train itself asks for their places again and again and says nothing of it."""

from gpo.cluster.placement import Demand, what_is_missing
from gpo.cluster.reservation import cluster_nodes

PLACED = "CREATED"


class WorkerRoom:
    """Whether workers that Ray Train starts from now on have their places."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._others = set(_groups_of_this_job())

    def missing(self) -> str | None:
        """None where the workers are placed or there is room for them; else what is wanted, registered and free."""
        groups = _groups_of_this_job()
        if any(state == PLACED for group, state in groups.items() if group not in self._others):
            return None
        return what_is_missing([self._demand], cluster_nodes())


def _groups_of_this_job() -> dict[str, str]:
    """Placement groups and their states; a group's id ends with that of its job, and other jobs may share a cluster."""
    import ray
    from ray.util.placement_group import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    return {group: told["state"] for group, told in placement_group_table().items() if group.endswith(job)}
