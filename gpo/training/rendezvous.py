"""How training workers find each other: through a file on one machine, by Ray's address of each node on several.

Torch's own store listens on every interface, so a run on one machine does without it. Its gloo takes the address of the
host's name, which on Debian is a loopback one, so every worker is told the interface that has the address Ray knows.
Used here, besides what Ray Train 2.60 documents: `backend_cls` of TorchConfig and `on_start` of what it names.
"""

import os
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig, get_device

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class Rendezvous(TorchConfig):
    """Ray Train's torch set-up; `folder`: a folder of this machine where all workers are on it, None: several nodes."""

    folder: str | None = None

    @property
    def backend_cls(self) -> type:
        """What Ray Train calls on the workers."""
        return ByFile if self.folder else ByOwnAddress


class ByOwnAddress(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray Train's own way, on the right interface."""

    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        """Before the first line of training, on the controller."""
        worker_group.execute(use_interface_of_node)
        super().on_start(worker_group, backend_config)


class ByFile(TorchConfig().backend_cls):  # type: ignore[misc]
    """Through a new file at every start of the workers."""

    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        """Before the first line of training, on the controller."""
        worker_group.execute(use_interface_of_node)
        assert backend_config.folder is not None
        store = str(Path(backend_config.folder) / f"rendezvous-{uuid.uuid4().hex}")
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join_by_file, store, rank, len(worker_group), backend_config.backend, backend_config.timeout_s
                )
                for rank in range(len(worker_group))
            ]
        )


def use_interface_of_node() -> None:
    """On a worker: gloo and NCCL take the interface with this node's address, unless the environment names one."""
    address = ray.util.get_node_ip_address()
    for interface, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            for name in INTERFACES:
                os.environ.setdefault(name, interface)


def join_by_file(store: str, rank: int, size: int, backend: str, seconds: int) -> None:
    """On a worker: the variables that a launcher sets, and the process group."""
    import torch.distributed as dist

    context = ray.train.get_context()
    os.environ.update(
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
        RANK=str(context.get_world_rank()),
        WORLD_SIZE=str(context.get_world_size()),
        MASTER_ADDR="127.0.0.1",
        ACCELERATE_TORCH_DEVICE=str(get_device()),
    )
    Path(store).parent.mkdir(parents=True, exist_ok=True)
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
    )
