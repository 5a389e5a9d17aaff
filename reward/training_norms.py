"""RMS norms of a model that is trained in autocast: their output comes in the compute type, once for all who take it.
What it is: in place of the norms before attention and before the MLP, one autograd function that gives what plain norms
give, rounded to the compute type. A plain one gives float32, which autocast then casts for queries, keys and values,
and for gate and up, each time anew, with as many gradients back; and its own gradient goes over the states twice as
often. What it is not: the last norm, whose float32 the heads see, and norms of queries and keys, stay plain; without
autocast every norm does.

Written for transformers 5.19; tests/contract/test_training_norms.py names what it leans on.

Shape suffixes: T tokens, H hidden size.
"""

import types
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reward.cpu_kernels import NORMS

PLACES = ("input_layernorm", "post_attention_layernorm")
"""What transformers calls a norm in a layer that only linear layers take from."""


def use_training_norms(model: nn.Module) -> None:
    """From now on; a second call changes nothing. The model keeps them, and without autocast they do nothing new."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in PLACES and type(module).__name__ in NORMS:
            # Methods of what they hang on: a deep copy of the model computes with its own weights.
            module.forward = types.MethodType(_forward, module)


def _forward(norm: nn.Module, states: Tensor) -> Tensor:
    device = states.device.type
    weight = cast(Tensor, norm.weight)
    if not torch.is_autocast_enabled(device) or weight.dtype != torch.float32:
        return cast(Tensor, type(norm).forward(norm, states))
    kind = torch.get_autocast_dtype(device)
    return cast(Tensor, _Norm.apply(states, weight, norm.variance_epsilon, kind))


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, computed in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight_H: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:
        wide = states.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight_H, scale)
        return (wide * scale).mul_(weight_H).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states, weight_H, scale = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            x_TH, scale_T1 = states.float().flatten(0, -2), scale.flatten(0, -2)
            # A tensor of its own, which is computed on in place.
            grad_TH = grad.flatten(0, -2).to(torch.float32, copy=True)
            product_TH = grad_TH * x_TH
            dot_T1 = product_TH @ weight_H[:, None]
            d_weight_H = scale_T1[:, 0] @ product_TH
            along_T1 = dot_T1 * scale_T1.pow(3) / -x_TH.shape[1]
            d_x_TH = grad_TH.mul_(weight_H).mul_(scale_T1).addcmul_(x_TH, along_T1)
        return d_x_TH.view(states.shape).to(states.dtype), d_weight_H, None, None
