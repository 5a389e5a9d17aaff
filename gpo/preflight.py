"""Every mistake of the caller, found before anything heavy starts.

Reads prompts, tokenizer, model and reward-model headers; starts no engine and no Ray.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.cpu import leave_out_sklearn
from gpo.errors import UserError
from gpo.faults import Faults
from gpo.modelfiles import context_length, has_chat_template, longest_of_source, parameter_count, read_model_config
from gpo.prompts import TokenizedPrompt, read_prompts, set_apart, split_prompts, tokenize
from gpo.provenance import data_hashes, installed_versions
from gpo.training.workers import sharding_obstacle
from rollout.canary import canary_rows
from rollout.engine_settings import SLACK_TOKENS
from rollout.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preflight found out and the run goes on with."""

    prompts: list[list[TokenizedPrompt]]
    heldout: list[TokenizedPrompt]
    max_model_len: int
    data_sha256: dict[str, str]
    versions: dict[str, str]
    notes: list[str]
    """Sentences for the log: counts of duplicates, over-long prompts and the like."""


def prepare(config: RunConfig) -> Prepared:
    """Check everything that the config names; raises UserError with every mistake that can be told at once."""
    leave_out_sklearn()
    from reward.source_check import check_source

    faults = Faults()
    notes: list[str] = []
    model = Path(config.policy.model)
    with faults.noted("policy.model"):
        model_config = _check_model(model)
        with faults.noted():
            room = _room(config, model_config)
    for name, spec in config.preference.sources.items():
        with faults.noted(f"preference.sources.{name}"):
            check_source(spec)
    with faults.noted():
        _check_engine(config)
    with faults.noted():
        _check_sharding(config)
    with faults.noted():
        _check_attention(config)
    with faults.noted():
        _check_offload(config)
    with faults.noted():
        _check_adapters(config)
    read: dict[str, list[Prompt]] = {}
    for field in ("train", "heldout"):
        if getattr(config.prompts, field) is not None:
            with faults.noted():
                read[field] = read_prompts(config, field, notes)
    faults.raise_found()
    # What follows imports transformers, which takes seconds: the mistakes above are told at once.
    train, heldout = set_apart(config, read, notes)
    from reward.checkpoint import load_config, load_tokenizer

    with faults.noted("policy.model"):
        load_config(model, config.policy.trust_remote_code)
        tokenizer = load_tokenizer(model, config.policy.trust_remote_code)
    faults.raise_found()
    with faults.noted():
        train_ids = tokenize(train, tokenizer, config, room, "training", notes)
    with faults.noted():
        heldout_ids = tokenize(heldout, tokenizer, config, room, "held-out", notes)
    faults.raise_found()
    with faults.noted():
        split = split_prompts(config, train_ids)
    faults.raise_found()
    longest = max(len(item.prompt_ids) for item in [*train_ids, *heldout_ids])
    warn_of_cut_conversations(config, longest + config.rollout.max_tokens, notes)
    canary = max(len(prompt) + len(answer) for prompt, answer in canary_rows(tokenizer))
    return Prepared(
        prompts=split,
        heldout=heldout_ids,
        max_model_len=_bounded(max(longest + config.rollout.max_tokens, canary) + SLACK_TOKENS, model_config),
        data_sha256=data_hashes(config, read),
        versions=installed_versions(),
        notes=notes,
    )


def warn_of_slow_type(config: RunConfig, notes: list[str]) -> None:
    """A note where the type that the policy is computed in is emulated here."""
    from reward.compute_type import device_here, is_emulated

    if config.cluster.address is None and is_emulated(config.policy.dtype, device_here()):
        notes.append(
            "policy.dtype = bfloat16, but this machine has no instructions for it and samples tens of times slower "
            "than in float32; begin runs in policy.dtype=auto or float32 here"
        )


def warn_of_cut_conversations(config: RunConfig, most: int, notes: list[str]) -> None:
    """A note for each reward model that reads less than the `most` tokens that a conversation may have."""
    for name, spec in config.preference.sources.items():
        kept = longest_of_source(spec, config.preference.max_length)
        if kept is not None and kept < most:
            notes.append(
                f"a prompt with its answer may have {most} tokens, of which preference.sources.{name} reads the first "
                f"{kept}: longer answers are cut before they are judged; raise preference.max_length where the reward "
                "model's context allows it, or lower rollout.max_tokens or prompts.max_tokens"
            )


def _bounded(tokens: int, model_config: dict[str, Any]) -> int:
    """No more than the model was made for, which vLLM would refuse."""
    return min(tokens, context_length(model_config) or tokens)


def _check_model(model: Path) -> dict[str, Any]:
    """The policy's config.json; raises UserError where weights, config or chat template are not as they must be."""
    model_config = read_model_config(model)
    parameter_count(model)
    if not has_chat_template(model):
        raise UserError(
            f"policy.model = {model}: its tokenizer has no chat template; expected "
            "chat_template.jinja or chat_template in tokenizer_config.json, as instruction-tuned models have"
        )
    return model_config


def _check_engine(config: RunConfig) -> None:
    if config.cluster.address is None and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vllm is not installed, and a run samples with it: pip install 'gpo-align[cuda]' on a GPU machine, `make "
            "setup` of a checkout on others"
        )


def _check_sharding(config: RunConfig) -> None:
    sharding = config.train.sharding
    # Whether a cluster's machines have GPUs, which fsdp needs, only they can tell.
    asked_here = config.train.workers > 1 and (config.cluster.address is None or sharding != "fsdp")
    obstacle = sharding_obstacle(sharding) if asked_here else None
    if obstacle:
        raise UserError(f"train.sharding = {sharding!r}: {obstacle}; or set train.sharding=none")


def _check_attention(config: RunConfig) -> None:
    if config.policy.attention != "flash_attention_2" or config.cluster.address is not None:
        return
    if _is_without_gpu(config):
        raise UserError(
            "policy.attention = 'flash_attention_2' needs a GPU, and this machine has none; set policy.attention=auto"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "policy.attention = 'flash_attention_2': flash_attn is not installed: pip install "
            "'gpo-align[cuda]'; or set policy.attention=sdpa"
        )


def _check_offload(config: RunConfig) -> None:
    if config.train.activation_offload and _is_without_gpu(config):
        raise UserError(
            "train.activation_offload = True moves activations off a GPU, and this machine has none; set "
            "train.activation_offload=false, or train.gradient_checkpointing=true for less memory"
        )


def _check_adapters(config: RunConfig) -> None:
    # vLLM 0.32: an adapter's part of the LM head has one row a sequence, the prompt's log-probabilities many.
    if config.rollout.engine.adapters and _is_without_gpu(config):
        raise UserError(
            "rollout.engine.adapters = True needs a GPU, and this machine has none: vLLM on a CPU cannot tell the "
            "canary the log-probabilities of a prompt under an adapter; set rollout.engine.adapters=false, which "
            "publishes merged weights"
        )


def _is_without_gpu(config: RunConfig) -> bool:
    """Of a run on this machine; what a cluster has is not known here."""
    from reward.compute_type import device_here

    return config.cluster.address is None and device_here() == "cpu"


def _room(config: RunConfig, model_config: dict[str, Any]) -> int:
    """Longest prompt in tokens that config and model allow."""
    context = context_length(model_config)
    if context is None:
        return config.prompts.max_tokens
    room = context - config.rollout.max_tokens
    if room < 1:
        raise UserError(
            f"rollout.max_tokens = {config.rollout.max_tokens} leaves no room for a prompt: the model was made for "
            f"{context} tokens"
        )
    return min(config.prompts.max_tokens, room)
