"""Log-probabilities of given answers by the trainer's own forward: for the canary, and for the KL estimate.

The forward is the learner's (float32 masters, autocast, `gpo.training.log_probs`), never the engine's.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpo.training.layout import IdRow, lay_out
from reward.vector_math import settle_vector_math

logger = logging.getLogger(__name__)


def choose_attention(
    model: str | Path, asked: str, *, device: str, compute_dtype: str, trust_remote_code: bool = False
) -> str:
    """The attention implementation of a model that computes in `compute_dtype` on `device` (cpu, cuda); logs why.

    eager where the model caps its attention scores: transformers 5.19 loads such models (Gemma-2) with sdpa and
    silently drops the cap. eager on the CPU too, where the backward of sdpa is slow for short rows, and where flash
    attention has no kernel. Else `auto` is flash attention where that is possible, and sdpa where not.
    """
    from transformers import AutoConfig

    if device == "cpu" and asked in ("auto", "flash_attention_2"):
        return "eager"
    if asked != "auto":
        return asked
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        chosen, reason = "eager", f"{config.model_type} caps its attention scores, which sdpa drops"
    else:
        obstacle = flash_obstacle(compute_dtype)
        chosen, reason = ("sdpa", obstacle) if obstacle else ("flash_attention_2", "flash-attn is installed")
    logger.info("attention is %s: %s", chosen, reason)
    return chosen


def flash_obstacle(compute_dtype: str) -> str | None:
    """Why flash-attn cannot compute in this type on this machine's GPU; None: it can."""
    from transformers.utils import is_flash_attn_2_available

    if compute_dtype not in ("bfloat16", "float16"):
        return f"flash-attn does not compute in {compute_dtype}"
    if not is_flash_attn_2_available():
        return "flash-attn is not installed"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"flash-attn has no kernel for {torch.cuda.get_device_name()}"
    return None


def load_policy(
    model: Path, *, attention: str, device: str, compute_dtype: str = "float32", trust_remote_code: bool = False
) -> Any:
    """The policy in float32, the type of its master weights, for whoever moves it to `device` (cpu, cuda)."""
    from transformers import AutoModelForCausalLM

    settle_vector_math()
    chosen = choose_attention(
        model, attention, device=device, compute_dtype=compute_dtype, trust_remote_code=trust_remote_code
    )
    return AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.float32,
        attn_implementation=chosen,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )


def compute_context(dtype: str, device_type: str) -> AbstractContextManager[Any]:
    """The autocast that the trainer computes in; nothing for float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device_type, dtype=getattr(torch, dtype))


@torch.no_grad()
def token_logps(model: Any, rows: Sequence[IdRow], dtype: str, batch_rows: int = 8) -> list[Tensor]:
    """log p in nats of each answer token of each row; `model` carries the head of `gpo.training.log_probs`.

    Rows of similar length are computed together and given back in order.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]) + len(rows[index][1]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        part = lay_out([rows[index] for index in chosen], "padded")
        lengths = part.pop("lengths")
        with compute_context(dtype, device.type):
            logps = model(**{name: tensor.to(device) for name, tensor in part.items()})
        found |= dict(zip(chosen, logps.cpu().split(lengths), strict=True))
    return [found[index] for index in range(len(rows))]
