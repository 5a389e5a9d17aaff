"""Log-probabilities of answer tokens without a vocabulary-wide logit tensor, forward and backward.

Only the positions that predict an answer token go through the LM head, a chunk of rows at a time; the backward
computes a chunk's logits again instead of keeping them. TRL's fused head does the same in float32 and with entropies
that GPO does not need: on a CPU with bfloat16 matrix units that was more than half of a training step.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

CHUNK_ELEMENTS = 1 << 24
"""Logits a chunk: 32 MiB in bfloat16 and twice that in float32."""


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(cap(scale * hidden W^T))[label] for each row; N positions, H hidden, V vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, label_N: Tensor, scale: float, cap: float) -> Tensor:
        logps, normalisers = [], []
        for hidden, label in _chunks(hidden_NH, label_N, weight_VH.shape[0]):
            logits = _logits(hidden, weight_VH, label, scale, cap)
            normaliser = logits.logsumexp(-1)
            logps.append(logits.gather(-1, label[:, None])[:, 0] - normaliser)
            normalisers.append(normaliser)
        normaliser_N = torch.cat(normalisers) if normalisers else hidden_NH.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(hidden_NH, weight_VH, label_N, normaliser_N)
        ctx.scale, ctx.cap = scale, cap
        return torch.cat(logps) if logps else normaliser_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (grad_N,) = gradients
        hidden_NH, weight_VH, label_N, normaliser_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NH)
        wants_weight = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if wants_weight else None
        start = 0
        for hidden, label in _chunks(hidden_NH, label_N, weight_VH.shape[0]):
            stop = start + len(hidden)
            logits = _logits(hidden, weight_VH, label, ctx.scale, ctx.cap)
            slope = _slope(logits, ctx.scale, ctx.cap)
            grad = grad_N[start:stop, None].float()
            # d logp / d logits = onehot - softmax; built in place, in float32, and only then rounded
            delta = logits.sub_(normaliser_N[start:stop, None]).exp_().mul_(-grad)
            delta.scatter_add_(-1, label[:, None], grad)
            delta = (delta.mul_(slope) if isinstance(slope, Tensor) or slope != 1.0 else delta).to(weight_VH.dtype)
            grad_hidden[start:stop] = delta @ weight_VH
            if grad_weight is not None and delta.dtype == grad_weight.dtype:
                grad_weight.addmm_(delta.T, hidden)  # without a product as large as the weight beside it
            elif grad_weight is not None:
                grad_weight += delta.T @ hidden
            start = stop
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), None, None, None


def _chunks(hidden_NH: Tensor, label_N: Tensor, vocabulary: int) -> Any:
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    return zip(hidden_NH.split(rows), label_N.split(rows), strict=True) if len(hidden_NH) else ()


def _logits(hidden: Tensor, weight_VH: Tensor, label: Tensor, scale: float, cap: float) -> Tensor:
    """Logits in float32. A bfloat16 product is rounded by up to 0.06 at 16; the label's own logit is not."""
    logits = (hidden @ weight_VH.T).float()
    if hidden.dtype != torch.float32:
        exact = (hidden.float() * weight_VH[label].float()).sum(-1, keepdim=True)
        logits.scatter_(-1, label[:, None], exact)
    if scale != 1.0:
        logits.mul_(scale)
    return logits.div_(cap).tanh_().mul_(cap) if cap else logits


def _slope(logits: Tensor, scale: float, cap: float) -> Tensor | float:
    """d logits / d (hidden W^T)."""
    return scale * (1.0 - (logits / cap) ** 2) if cap else scale


def logit_transform(config: Any) -> tuple[float, float]:
    """(scale, soft cap) between the LM head and the logits; the cap is 0 where there is none.

    Raises ValueError for models that scale their logits under a name that is not known here.
    """
    text = config.get_text_config()
    cap = float(getattr(text, "final_logit_softcapping", None) or 0.0)
    scale = getattr(text, "logit_scale", None)
    if scale is None and getattr(text, "logits_scaling", None) is not None:
        # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies.
        scale = text.logits_scaling if text.model_type == "hyperclovax" else 1.0 / text.logits_scaling
    for unknown in ("output_multiplier", "lm_head_multiplier"):
        if getattr(text, unknown, None) not in (None, 1.0):
            raise ValueError(f"{text.model_type}: config.{unknown} is not supported by gpo.training.log_probs")
    return (1.0 if scale is None else float(scale)), cap


def add_log_prob_head(model: Any) -> None:
    """Let `model(..., answer_at=places_R, answer_ids=tokens_R)` return log p [R] in float32 nats.

    `answer_at` are flat positions of the final hidden states, each of which predicts the token of `answer_ids` at the
    same place (`layout`). Without the arguments the forward is the model's own. Going through the model's forward
    and through that of its LM head keeps DDP's, DeepSpeed's and FSDP's hooks in place. A second call changes nothing.
    `compute_dtype` is the type of an autocast opened within the forward pass: DeepSpeed's engine ends one that is
    opened around it (only on a GPU).
    Raises ValueError for a head with a bias and for logits that are scaled in an unknown way.
    """
    scale, cap = logit_transform(model.config)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(
            f"{model.config.model_type}: an LM head with a bias is not supported by gpo.training.log_probs"
        )

    @functools.wraps(type(head).forward)
    def head_forward(self: Any, hidden: Tensor, answer_ids: Tensor | None = None) -> Tensor:
        if answer_ids is None:
            return cast(Tensor, type(self).forward(self, hidden))
        weight = self.weight.full_tensor() if isinstance(self.weight, DTensor) else self.weight
        kind = torch.get_autocast_dtype(hidden.device.type) if _autocast_is_on(hidden) else weight.dtype
        return cast(Tensor, ChunkedLogProbs.apply(hidden.to(kind), weight.to(kind), answer_ids, scale, cap))

    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        answer_at: Tensor | None = None,
        answer_ids: Tensor | None = None,
        compute_dtype: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if answer_at is None:
            return type(self).forward(self, *args, **kwargs)
        with _computing(compute_dtype, answer_at.device.type):
            hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            return self.get_output_embeddings()(hidden.flatten(0, 1)[answer_at], answer_ids=answer_ids)

    # Methods of what they hang on: a deep copy of the model, or of its head, computes with its own weights.
    head.forward, model.forward = MethodType(head_forward, head), MethodType(forward, model)


def answer_logps(logps_R: Tensor, lengths: Sequence[int]) -> Tensor:
    """log p [N] in nats of whole answers, from that of their tokens."""
    return torch.stack([part.sum() for part in logps_R.split(list(lengths))])


def _computing(dtype: str | None, device_type: str) -> AbstractContextManager[Any]:
    if dtype is None:
        return nullcontext()
    # Without a cache of whole casts: weights that are gathered layer by layer would stay in it.
    return torch.autocast(device_type, getattr(torch, dtype), enabled=dtype != "float32", cache_enabled=False)


def _autocast_is_on(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
