"""Weights over the network instead of the disk: vLLM's own NCCL weight transfer, between a sender and the engines.

Written to vLLM 0.32's documented calls for GPUs and not run on one: `tests/contract/test_weight_transfer.py` holds the
names. An engine always starts from the disk; only updates of engines that run come this way. The checkpoint on disk
stays the truth, and the canary judges what arrived, whichever way it came.
"""

import socket
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What is needed of the policy's engine."""

    def transfer(self, call: str, *arguments: Any) -> None:
        """Hand a step of the transfer to vLLM."""
        ...


class WeightReceiver:
    """The calls that vLLM's `RayVLLMWeightSyncClient` makes on each engine's actor, by vLLM's names."""

    _version: str
    _held: tuple[str, str | None] | None

    def _loaded(self) -> Engine:
        raise NotImplementedError

    async def init_weight_transfer_engine(self, request: Any) -> None:
        """Join the sender's group."""
        self._loaded().transfer("init_weight_transfer_engine", request)

    async def shutdown_weight_transfer_engine(self) -> None:
        """Leave it."""
        self._loaded().transfer("shutdown_weight_transfer_engine")

    async def start_weight_update(self) -> None:
        """From here on the engine holds a mixture."""
        self._held, self._version = None, ""
        self._loaded().transfer("start_weight_update")

    async def update_weights(self, request: Any) -> None:
        """Receive; returns when all of it is there."""
        self._loaded().transfer("update_weights", request)

    async def finish_weight_update(self) -> None:
        """All of it is in place; prefixes computed with the old weights are forgotten."""
        self._loaded().transfer("finish_weight_update")

    async def update_weight_version(self, version: str) -> None:
        """Rows carry this version from now on."""
        self._version = version


class NcclSender:
    """An actor on a GPU of its own that reads a published checkpoint and broadcasts it to engines."""

    def send(self, directory: str, version: str, engines: list[Any], parts: int) -> None:
        """Send to actors of `Sampler`, each spread over `parts` GPUs.

        Raises ValueError for a directory that is not the version's. After any exception the engines hold a mixture.
        """
        from transformers import AutoModelForCausalLM
        from vllm.distributed.weight_transfer.base import ModuleSource
        from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        from rollout.weights import verify_published

        marker = verify_published(Path(directory))
        if marker.version != version:
            raise ValueError(f"{directory}: holds version {marker.version}, expected {version}")
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", use_safetensors=True)
        model = model.cuda()
        client = RayVLLMWeightSyncClient(engines)
        address, port = _own_address()
        place = NCCLTrainerInitInfo(
            master_address=address, master_port=port, world_size=1 + len(engines) * parts, rank=0
        )
        transfer = NCCLTrainerWeightTransferEngine.trainer_init(place, client=client, source=ModuleSource(model))
        try:
            transfer.send_weights()
            import ray

            ray.get([engine.update_weight_version.remote(version) for engine in engines])
        finally:
            transfer.shutdown()


def _own_address() -> tuple[str, int]:
    """Where the engines find this process: its address among the nodes, and a free port."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.socket() as listener:
        listener.bind((address, 0))
        return address, listener.getsockname()[1]
