"""Ray Train's trainer for torch, without what only a cluster needs."""

from typing import Any

from gpo.config import ClusterConfig
from gpo.cpu import give_back_memory

OF_A_CLUSTER = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})
"""What Ray Train brings along that asks the dashboard of a cluster whether the controller lives, and that shares out
datasets of Ray Data, of which a learner has none."""

EXPORTS = b"fun"
"""Namespace of Ray's own store that holds the code of classes and functions."""
OWN_CLASSES = b"ray.train.v2"
"""What the code of every actor of Ray Train names, and of no other."""


def torch_trainer(cluster: ClusterConfig) -> Any:
    """The class of the trainer that fits on this cluster.

    On a Ray of our own it starts no PlacementGroupCleaner, DatasetManager and autoscaling coordinator (nor a
    PreemptionWatcher: `gpo.cluster.ray_environment`). Each is a process that starts with every training and then wakes
    a hundred times a second, which takes the cores from a learner on few of them; and the cleaner waits for a dashboard
    that is not there, the last 12 seconds of a training. And the code that Ray keeps of it, 85 KiB, goes with the
    training. The hooks are private to Ray 2.60; without them those processes and that code only come back.
    """
    from ray.train.torch import TorchTrainer

    if cluster.address is not None:
        return TorchTrainer

    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class UnaskedScalingPolicy(FixedScalingPolicy):
        """Asks no autoscaler for room: a Ray of our own has none."""

        def _send_resource_request(self) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

        def _cancel_resource_request(self) -> None: ...

    class LocalTorchTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in made if type(one).__name__ not in OF_A_CLUSTER]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            policy = UnaskedScalingPolicy(settings["scaling_policy"].scaling_config)
            try:
                return super()._initialize_and_run_controller(**{**settings, "scaling_policy": policy})  # type: ignore[misc]
            finally:
                _forget_classes()
                give_back_memory()

    return LocalTorchTrainer


def _forget_classes() -> None:
    """Ray's GCS keeps the code of all classes of actors, and Ray Train makes its own anew for each training."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list

    for key in _internal_kv_list(b"ActorClass:", namespace=EXPORTS):
        if OWN_CLASSES in (_internal_kv_get(key, namespace=EXPORTS) or b""):
            _internal_kv_del(key, namespace=EXPORTS)
