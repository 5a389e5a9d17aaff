"""What can be learned of a model directory from small reads: config, tensor shapes, template. No torch, no weights."""

import json
import logging
import struct
from math import prod
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.errors import UserError

logger = logging.getLogger(__name__)

LARGEST_HEADER = 100 << 20
LONGEST = 4096
"""Tokens of a conversation that are kept where nothing else is asked for, as the published pipeline does."""


def read_model_config(directory: Path) -> dict[str, Any]:
    """config.json of a Hugging Face directory; raises UserError when there is none."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no config.json; expected a Hugging Face model directory (download one, or run "
            "scripts/smollm2.py for the quick start's)"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}/config.json: not readable ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{directory}/config.json: expected an object")
    return values


def stored_dtype(directory: Path) -> str:
    """The type that a model directory's config names; float32 where it names none. Raises UserError for others."""
    config = read_model_config(directory)
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in ("bfloat16", "float16", "float32"):
        raise UserError(
            f"{directory}/config.json names the type {name!r}, which dtype=auto does not know; set policy.dtype "
            "(--dtype) to bfloat16, float16 or float32"
        )
    return name


def with_compute_dtype(config: RunConfig, notes: list[str], begun: str | None = None) -> RunConfig:
    """The config with `policy.dtype` as it will be computed in, and a note that says why.

    `begun`: the type of the run that goes on; a run keeps it wherever it moves. Raises UserError where `auto` cannot be
    told, and where what it means disagrees with another setting.
    """
    if config.policy.dtype != "auto":
        return config
    if begun is not None:
        notes.append(f"policy.dtype = auto: {begun}, as the run was begun")
        return _with_dtype(config, begun)
    stored = dtype = stored_dtype(Path(config.policy.model))
    cluster = config.cluster
    if stored == "bfloat16" and cluster.address is None and not (cluster.sampler_gpus or cluster.learner_gpus):
        from reward.compute_type import compute_type, device_here

        dtype = compute_type(stored, device_here())
    why = "as the policy is stored" if dtype == stored else f"because this CPU has no instructions for {stored}"
    notes.append(f"policy.dtype = auto: {dtype}, {why}")
    return _with_dtype(config, dtype)


def _with_dtype(config: RunConfig, dtype: str) -> RunConfig:
    found = config.model_copy(update={"policy": config.policy.model_copy(update={"dtype": dtype})})
    # A copy is not validated, and a type that nobody wrote down may disagree with what is written as well as another.
    disagreements = list(found.disagreements())
    if disagreements:
        raise UserError(f"policy.dtype = auto is {dtype} here: {'; '.join(disagreements)}")
    return found


def parameter_count(directory: Path) -> int:
    """Parameters in the safetensors files, from their headers; raises UserError for other or damaged weights."""
    return sum(prod(shape) for shape in tensor_shapes(directory).values())


def adapter_parameter_count(directory: Path, rank: int, modules: list[str] | str) -> int:
    """Parameters of a LoRA adapter of `rank` on the linear layers of these names, or on all but the head."""
    return sum(
        rank * sum(shape)
        for name, shape in tensor_shapes(directory).items()
        if len(shape) == 2 and _gets_adapter(name.removesuffix(".weight"), modules)
    )


def _gets_adapter(layer: str, modules: list[str] | str) -> bool:
    if modules == "all-linear":
        return "embed" not in layer and not layer.endswith("lm_head")
    return any(layer == module or layer.endswith(f".{module}") for module in modules)


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    """Shape of every stored tensor; raises UserError for other than whole safetensors files."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{directory}: no *.safetensors weights; pickled weights (.bin) are refused because loading them can run "
            "code: convert them with transformers' save_pretrained"
        )
    return {name: shape for path in files for name, shape in _shapes(path).items()}


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST_HEADER:
                raise ValueError(f"header of {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
            size = stream.seek(0, 2)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if size < expected:
            raise ValueError(f"{size} bytes, the header promises {expected}")
        return {name: [int(length) for length in entry["shape"]] for name, entry in tensors.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, struct.error) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch or convert it again") from None


def has_chat_template(directory: Path) -> bool:
    """Whether the tokenizer of the directory carries a chat template."""
    if (directory / "chat_template.jinja").is_file():
        return True
    try:
        values = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))


def context_length(config: dict[str, Any]) -> int | None:
    """Tokens that the model was made for, where its config says; raises UserError where it says no number."""
    text = config.get("text_config", config)
    value = text.get("max_position_embeddings") if isinstance(text, dict) else None
    if value and not isinstance(value, int):
        raise UserError(f"config.json: max_position_embeddings is {value!r:.60}, expected a whole number")
    return value or None


def longest_conversation(model: Path, asked: int | None) -> int:
    """Tokens of a conversation that are kept: as asked, or 4096, or the model's context where that is shorter."""
    context = context_length(read_model_config(model))
    if context is None or context >= (asked or LONGEST):
        return asked or LONGEST
    if asked is None:
        logger.info("max_length: %d tokens, the model's context", context)
    else:
        logger.warning("max_length: %d tokens instead of %d, because the model was made for no more", context, asked)
    return context


def longest_of_source(spec: str, asked: int) -> int | None:
    """Tokens of a conversation that a preference source reads, `asked` at most; None: it reads all."""
    kind, _, place = spec.partition(":")
    return longest_conversation(Path(place), asked) if kind == "gpm" else None
