"""The vLLM back end: token rows in, final hidden states of two positions out.
What it is: pooling requests to an engine that runs in this process; rows and their prompts are handed over
sorted, so that the engine's prefix cache computes a prompt once. Everything special to vLLM 0.32 is in this
file; tests/reward/test_backend_vllm.py names the version. What it is not: it applies no heads and knows no
text, and vLLM is imported when an engine starts and not before.

Shape suffixes: N rows, U different requests, H hidden size.
"""

import copy
import functools
import importlib.util
import logging
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reward.backend_transformers import HiddenStates
from reward.checkpoint import check_directory
from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.heads import PROMPT_HEAD, VALUE_HEAD
from reward.lm_head import LM_HEADS
from reward.model import DTYPES
from reward.packing import Row
from reward.vector_math import settle_vector_math

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

LOAD_FORMAT = "gpo_backbone"
MAX_SEQUENCES = 256
CPU_BLOCK = 32
"""Tokens a block of the cache; prompts are shared by whole blocks. The smallest that vLLM's CPU kernels like."""


class VllmBackend:
    """A pooling engine on the backbone of one checkpoint directory."""

    def __init__(
        self,
        directory: str | Path,
        config: "PretrainedConfig",
        *,
        gated: bool,
        dtype: str = "auto",
        max_length: int = 4096,
        tokens_per_batch: int = 8192,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Start the engine; `gated` False saves computing the states at prompts' ends.

        Raises RewardInputError for what is no checkpoint directory, and for options and models that vLLM cannot take.
        """
        check_directory(Path(directory))
        if dtype not in DTYPES:
            raise RewardInputError(f"dtype is {dtype!r}, expected one of: {', '.join(DTYPES)}")
        require_vllm()
        self.gated = gated
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(max_length, context or max_length)
        chosen_dtype = _dtype_name(config, dtype)
        self._llm = _start(
            _prepare_environment(device)
            | {
                "model": str(directory),
                "dtype": chosen_dtype,
                "hf_overrides": {"architectures": [base_architecture(config)]},
                "max_model_len": self.max_length,
                "max_num_batched_tokens": max(tokens_per_batch, MAX_SEQUENCES),
                "kv_cache_memory_bytes": _cache_bytes(config, chosen_dtype, tokens_per_batch + self.max_length),
                "trust_remote_code": trust_remote_code,
            }
        )

    def hidden_states(self, rows: Sequence[EncodedConversation]) -> HiddenStates:
        """float32 states of each row on the CPU, in order; equal requests are made once.

        Raises RewardInputError for a row that is longer than the model's context.
        """
        longest = max((len(row.input_ids) for row in rows), default=0)
        if longest > self.max_length:
            raise RewardInputError(
                f"a conversation has {longest} tokens, expected at most the {self.max_length} the model was made "
                "for; give a lower max_length, so that longer ones are cut, or use backend='transformers'"
            )
        answers = [tuple(row.input_ids) for row in rows]
        prompts = [tuple(row.input_ids[: row.prompt_end + 1]) for row in rows] if self.gated else []
        # Sorted, a prompt goes before its answers and they follow each other: the cache still holds it.
        requests = sorted({*answers, *prompts})
        place_of = {request: place for place, request in enumerate(requests)}
        states_UH = self._pool(requests)
        prompt_NH = states_UH[[place_of[prompt] for prompt in prompts]] if self.gated else None
        return HiddenStates(states_UH[[place_of[answer] for answer in answers]], prompt_NH)

    def _pool(self, requests: Sequence[Row]) -> Tensor:
        from vllm import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids in requests]
        outputs = self._llm.encode(prompts, pooling_task="embed", use_tqdm=False)
        return torch.stack([output.outputs.data for output in outputs]).float().cpu()


def vllm_is_installed() -> bool:
    """Looked up without importing it, which takes seconds."""
    return importlib.util.find_spec("vllm") is not None


def require_vllm() -> None:
    """Raises RewardInputError, which says what to install, where vLLM is missing."""
    if not vllm_is_installed():
        raise RewardInputError(
            "backend 'vllm' needs vLLM, which is not installed: `pip install 'gpo-align[cuda]'` on a machine with a "
            "GPU, `make setup` without one; or use backend='transformers', which computes the same"
        )


def base_architecture(config: "PretrainedConfig") -> str:
    """The language model's class; published checkpoints name CustomRewardModel, which vLLM does not know."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise RewardInputError(
            f"transformers knows no causal language model of type {config.model_type!r}, which backend 'vllm' "
            "needs; use backend='transformers'"
        )
    return str(name)


def _dtype_name(config: "PretrainedConfig", asked: str) -> str:
    """vLLM's own `auto` would run a float32 checkpoint in half precision, and it computes in no wider type."""
    if asked != "auto":
        return asked
    stored = str(config.dtype).removeprefix("torch.")
    return stored if stored in DTYPES else "float32"


def _cache_bytes(config: "PretrainedConfig", dtype: str, tokens: int) -> int:
    """Room for twice so many tokens, as blocks are rarely full; without a limit vLLM would take what it likes."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width: int = 2 * text.num_hidden_layers * heads * head_size * getattr(torch, dtype).itemsize
    return 2 * tokens * width


def _prepare_environment(device: str | None) -> dict[str, Any]:
    """Engine arguments for vLLM's platform, and the environment that it reads."""
    # In this process: on the CPU others are five times slower, and our loader is registered in this one only.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # Without it vLLM lowers torch to one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    from vllm.platforms import current_platform

    found = current_platform.device_type
    if device is not None and device.partition(":")[0] != found:
        raise RewardInputError(
            f"device is {device!r}, but the vLLM installed here runs on {found!r}; leave device out, or use "
            "backend='transformers'"
        )
    logger.info("vllm: an engine in this process on %s, with prefix caching, not compiled", found)
    return {"distributed_executor_backend": "uni", "block_size": CPU_BLOCK} if current_platform.is_cpu() else {}


def _start(arguments: dict[str, Any]) -> Any:
    from vllm import LLM
    from vllm.config import PoolerConfig

    settle_vector_math()
    _register_loader()
    return LLM(
        runner="pooling",
        convert="embed",
        pooler_config=PoolerConfig(pooling_type="LAST", use_activation=False),
        load_format=LOAD_FORMAT,
        use_tqdm_on_load=False,
        enable_prefix_caching=True,
        # Compiling takes a minute and helps decoding, of which there is none.
        enforce_eager=True,
        max_num_seqs=MAX_SEQUENCES,
        seed=0,
        **arguments,
    )


@functools.cache
def _register_loader() -> None:
    """vLLM refuses a checkpoint with tensors that its model lacks: hand it all but the heads and the lm_head."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    class BackboneLoader(DefaultModelLoader):
        """safetensors only."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self.load_config = copy.copy(load_config)
            self.load_config.load_format = "safetensors"

        def get_all_weights(self, model_config: Any, model: Any) -> Generator[tuple[str, Tensor], None, None]:
            for name, tensor in super().get_all_weights(model_config, model):
                if name not in (VALUE_HEAD, PROMPT_HEAD, *LM_HEADS):
                    yield name, tensor

    register_model_loader(LOAD_FORMAT)(BackboneLoader)
