"""Ray Train's trainer for torch, without what only a cluster needs."""

from typing import Any

from gpo.config import ClusterConfig


def torch_trainer(cluster: ClusterConfig) -> Any:
    """The class of the trainer that fits on this cluster.

    On a Ray of our own it has no PlacementGroupCleaner: a process that asks Ray's dashboard whether the controller
    lives, for the case that it dies. Such a Ray has no dashboard and ends with the run, and waiting for that answer in
    vain took the last 12 seconds of every training. The hook is private to Ray 2.60; without it they only come back.
    """
    from ray.train.torch import TorchTrainer

    if cluster.address is not None:
        return TorchTrainer

    class LocalTorchTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in made if type(one).__name__ != "PlacementGroupCleanerCallback"]

    return LocalTorchTrainer
