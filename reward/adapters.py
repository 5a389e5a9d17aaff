"""LoRA and QLoRA on the backbone, with the heads trained in full.
What it is: adapters put on a backbone by peft, and the weights that a backbone without adapters would need to compute
the same. What it is not: it trains and writes nothing.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reward.errors import RewardInputError
from reward.training_settings import AdapterSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"


def add_adapters(backbone: "PreTrainedModel", settings: AdapterSettings, seed: int) -> None:
    """Freeze the backbone and put trained adapters into it, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = list(settings.targets) or linear_names(backbone)
    values: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    config = LoraConfig(**values, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, backbone, adapter_name=ADAPTER)
        except ValueError as error:
            raise RewardInputError(f"adapter.targets = {targets}: {error}") from None
    other = [name for name, layer in backbone.named_modules() if _is_adapted(layer) and not _is_linear(layer)]
    if other:
        raise RewardInputError(f"adapter.targets = {targets}: {other[0]} is no linear layer; expected linear layers")
    for name, weight in backbone.named_parameters():
        weight.requires_grad_("lora_" in name)


def linear_names(backbone: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers."""
    return sorted({name.rpartition(".")[2] for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)})


def without_adapters(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`, the whole weights of `model`, with its adapters added into what they adapt; the model stays as it is.

    By the names in `state`, because a model that is spread over workers holds only pieces.
    """
    layers = {name: layer for name, layer in model.named_modules() if _is_adapted(layer)}
    found: dict[str, Tensor] = {}
    for name, tensor in _unpacked(model, state).items():
        owner = next((known for known in _owners(name) if known in layers), None)
        if owner is None:
            found[name] = tensor
        elif name == f"{owner}.base_layer.weight":
            found[f"{owner}.weight"] = tensor.detach().float().cpu() + _update(layers[owner], owner, state)
        elif name == f"{owner}.base_layer.bias":
            found[f"{owner}.bias"] = tensor
    return found


def _unpacked(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with plain weights where layers hold theirs in 4 bits."""
    packed = {name: layer.weight for name, layer in model.named_modules() if _is_packed(layer)}
    if not packed:
        return state
    from bitsandbytes.functional import dequantize_4bit

    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner = next((known for known in _owners(name) if known in packed), None)
        if owner is None or name == f"{owner}.bias":
            found[name] = tensor
        elif name == f"{owner}.weight":
            found[name] = dequantize_4bit(packed[owner].data, packed[owner].quant_state)
    return found


def _owners(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _is_adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer")


def _is_linear(layer: Any) -> bool:
    return isinstance(layer.base_layer, nn.Linear)


def _is_packed(layer: Any) -> bool:
    # An adapted layer shows the weight of the one below it as its own.
    return not _is_adapted(layer) and hasattr(getattr(layer, "weight", None), "quant_state")


def _update(layer: Any, owner: str, state: dict[str, Tensor]) -> Tensor:
    """scaling * B A of a linear layer."""
    down, up = (state[f"{owner}.lora_{one}.{ADAPTER}.weight"].detach().float().cpu() for one in "AB")
    return (up @ down) * float(layer.scaling[ADAPTER])


def quantization(precision: str) -> Any:
    """transformers' settings for a backbone in 4 bits (NF4, as in the QLoRA paper) that computes in `precision`.

    Raises RewardInputError where they cannot work.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise RewardInputError("adapter.quantized is on, but bitsandbytes is missing; `pip install bitsandbytes`")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, precision),
    )
