"""Norms and rotary positions of a model that is trained in autocast: one function each, which rounds once.
What it is: in place of the norms before attention and before the MLP, and of rotary positions, autograd functions that
give what plain ones give, in the compute type. A plain norm gives float32, which autocast then casts for queries, keys
and values, and for gate and up, each time anew, with as many gradients back; plain rotary positions multiply queries in
bfloat16 with tables in float32, which on a CPU takes several times longer than a cast and a product; and the gradients
of both go over the states twice as often. What it is not: the last norm, whose float32 the heads see, and norms of
queries and keys, stay plain; without autocast everything does.

Written for transformers 5.19; tests/contract/test_training_layers.py names what it leans on.

Shape suffixes: T tokens, H hidden size, N heads, E head size.
"""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reward.cpu_kernels import NORMS, ROTATION

PLACES = ("input_layernorm", "post_attention_layernorm")
"""What transformers calls a norm in a layer that only linear layers take from."""
Rotation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def use_training_layers(model: nn.Module) -> None:
    """From now on; a second call changes nothing. The model keeps them, and without autocast they do nothing new.

    Rotary positions are those of all models of its class in this process.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in PLACES and type(module).__name__ in NORMS:
            # Methods of what they hang on: a deep copy of the model computes with its own weights.
            module.forward = types.MethodType(_forward_of_norm, module)
            home = sys.modules[type(module).__module__]
            plain = getattr(home, ROTATION)
            if getattr(plain, "func", None) is not _rotated:
                setattr(home, ROTATION, functools.partial(_rotated, plain))


def _forward_of_norm(norm: nn.Module, states: Tensor) -> Tensor:
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


def _rotated(plain: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, N, T, E), turned; cos and sin are (1, T, E)."""
    device = q.device.type
    autocast = torch.is_autocast_enabled(device) and q.dtype == k.dtype == torch.get_autocast_dtype(device)
    if not autocast or cos.dtype != torch.float32 or cos.shape[-1] != q.shape[-1]:
        return plain(q, k, cos, sin)
    return _Rotation.apply(q, cos[:, None], sin[:, None]), _Rotation.apply(k, cos[:, None], sin[:, None])


class _Rotation(torch.autograd.Function):
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b of each head, computed in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _turned(states, cos, first, second, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _turned(grad, cos, second, first, -1), None, None


def _turned(states: Tensor, cos: Tensor, first: Tensor, second: Tensor, sign: int) -> Tensor:
    wide = states.float()
    a, b = wide.chunk(2, -1)
    turned = wide * cos
    turned_a, turned_b = turned.chunk(2, -1)
    turned_a.addcmul_(b, first, value=-sign)
    turned_b.addcmul_(a, second, value=sign)
    return turned.to(states.dtype)
