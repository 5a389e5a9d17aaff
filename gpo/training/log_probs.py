"""Log-probabilities of answer tokens without a vocabulary-wide logit tensor, forward and backward.

Only the positions that predict an answer token go through the LM head, a chunk of rows at a time; the backward
computes a chunk's logits again instead of keeping them. TRL's fused head does the same in float32 and with entropies
that GPO does not need: on a CPU with bfloat16 matrix units that was more than half of a training step.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from reward.shared_states import states_at

CHUNK_BYTES = 1 << 27
"""Logits a chunk, in the type of the product."""
SLICE_ELEMENTS = 1 << 18
"""Logits in float32 that one core works on at a time, so that they stay in its cache."""


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(cap(scale * hidden W^T))[label] for each row; N positions, H hidden, V vocabulary.

    The product is computed in the type of `hidden_NH`, all else in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, label_N: Tensor, scale: float, cap: float) -> Tensor:
        product_VH = weight_VH.to(hidden_NH.dtype)
        logp_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        for chunk in _chunks(len(hidden_NH), product_VH):
            logits, exact = _logits(hidden_NH[chunk], product_VH, label_N[chunk])
            for rows in _slices(logits):
                label_R1 = label_N[chunk][rows, None]
                wide = _transformed(logits[rows], exact[rows], label_R1, scale, cap)
                logp_N[chunk][rows] = torch.log_softmax(wide, -1).gather(-1, label_R1)[:, 0]
        ctx.save_for_backward(hidden_NH, product_VH, label_N)
        ctx.scale, ctx.cap, ctx.weight_type = scale, cap, weight_VH.dtype
        return logp_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (grad_N,) = gradients
        hidden_NH, product_VH, label_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NH)
        wants_weight = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(product_VH, dtype=torch.float32) if wants_weight else None
        for chunk in _chunks(len(hidden_NH), product_VH):
            logits, exact = _logits(hidden_NH[chunk], product_VH, label_N[chunk])
            for rows in _slices(logits):
                label_R1, grad_R1 = label_N[chunk][rows, None], grad_N[chunk][rows, None].float()
                wide = _transformed(logits[rows], exact[rows], label_R1, ctx.scale, ctx.cap)
                # d logp / d logits = onehot - softmax; in float32, and only then rounded
                delta = torch.softmax(wide, -1).mul_(-grad_R1).scatter_add_(-1, label_R1, grad_R1)
                logits[rows] = _times_slope(delta, wide, ctx.scale, ctx.cap)
            grad_hidden[chunk] = logits @ product_VH
            if grad_weight is not None and logits.dtype == grad_weight.dtype:
                grad_weight.addmm_(logits.T, hidden_NH[chunk])  # without a product as large as the weight beside it
            elif grad_weight is not None:
                grad_weight += logits.T @ hidden_NH[chunk]
        return grad_hidden, None if grad_weight is None else grad_weight.to(ctx.weight_type), None, None, None


def _chunks(rows: int, product_VH: Tensor) -> Iterator[slice]:
    """Rows whose logits are computed at once."""
    most = max(1, CHUNK_BYTES // (len(product_VH) * product_VH.element_size()))
    return (slice(start, start + most) for start in range(0, rows, most))


def _slices(logits_NV: Tensor) -> Iterator[slice]:
    """Rows of a chunk that are worked on at once: on a CPU few, which stay in its caches, else all."""
    elements = SLICE_ELEMENTS * torch.get_num_threads() if logits_NV.device.type == "cpu" else logits_NV.numel()
    most = max(1, elements // logits_NV.shape[1])
    return (slice(start, start + most) for start in range(0, len(logits_NV), most))


def _logits(hidden_NH: Tensor, product_VH: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """Logits_NV as the product gives them, and those of the labels exact_N1 in float32.

    A bfloat16 product is rounded by up to 0.06 at 16; the label's own logit is not.
    """
    logits_NV = hidden_NH @ product_VH.T
    if hidden_NH.dtype == torch.float32:
        return logits_NV, logits_NV.gather(-1, label_N[:, None])
    return logits_NV, (hidden_NH.float() * product_VH[label_N].float()).sum(-1, keepdim=True)


def _transformed(logits: Tensor, exact: Tensor, label: Tensor, scale: float, cap: float) -> Tensor:
    """Scaled and capped logits in float32, that of the label exact."""
    wide = logits.to(torch.float32, copy=True).scatter_(-1, label, exact)
    if scale != 1.0:
        wide.mul_(scale)
    return wide.div_(cap).tanh_().mul_(cap) if cap else wide


def _times_slope(delta: Tensor, wide: Tensor, scale: float, cap: float) -> Tensor:
    """The gradient before scale and cap, from that behind them."""
    if cap:
        return delta.mul_(wide.div_(cap).square_().neg_().add_(1.0)).mul_(scale)
    return delta.mul_(scale) if scale != 1.0 else delta


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
        return cast(Tensor, ChunkedLogProbs.apply(hidden.to(kind), weight, answer_ids, scale, cap))

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
            states = states_at(hidden.flatten(0, 1), answer_at)
            return self.get_output_embeddings()(states, answer_ids=answer_ids)

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
