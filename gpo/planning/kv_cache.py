"""How much memory an engine on the CPU keeps for keys and values, and why. On a GPU vLLM takes a share of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.modelfiles import read_model_config
from gpo.planning.memory import BYTES, GIB, available_memory_gib

SHARE = 1 / 16
"""Of the free memory, for the caches of all samplers together, where the config names no size."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Of one engine."""

    gib: float
    reason: str


def kv_cache(config: RunConfig) -> CacheSize:
    """What the config says; else room for all sequences at their longest within SHARE, and for one in any case."""
    engine = config.rollout.engine
    if engine.kv_cache_gib is not None:
        return CacheSize(engine.kv_cache_gib, "rollout.engine.kv_cache_gib says so")
    longest = config.prompts.max_tokens + config.rollout.max_tokens
    one = longest * kv_bytes_a_token(read_model_config(Path(config.policy.model)), config.policy.dtype) / GIB
    every, share = engine.max_sequences * one, available_memory_gib() * SHARE / config.cluster.samplers
    if every <= share:
        return CacheSize(every, f"{engine.max_sequences} sequences of {longest} tokens need no more")
    return CacheSize(
        max(one, share),
        f"{engine.max_sequences} sequences of {longest} tokens would need {every:.1f}, and the caches of all samplers "
        f"get a {1 / SHARE:.0f}th of the free memory",
    )


def kv_bytes_a_token(model_config: dict[str, Any], dtype: str) -> int:
    """Bytes of the KV cache for a token: keys and values of every layer and KV head.

    Raises UserError where the config does not say how many there are.
    """
    text = model_config.get("text_config", model_config)
    try:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return int(2 * text["num_hidden_layers"] * heads * width * BYTES[dtype])
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"the policy's config.json does not say how large its keys and values are ({type(error).__name__}: "
            f"{error}); expected num_hidden_layers, num_attention_heads and "
            "hidden_size; or set rollout.engine.kv_cache_gib"
        ) from None
