"""Every mistake of the caller, found before anything heavy starts.

Reads prompts, tokenizer, model and reward-model headers; starts no engine and no Ray.
"""

import importlib.util
import logging
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.config import RunConfig
from gpo.context import TokenizedPrompt
from gpo.errors import UserError
from gpo.faults import Faults
from gpo.modelfiles import context_length, has_chat_template, parameter_count, read_model_config
from gpo.provenance import data_hashes, installed_versions
from gpo.training.workers import sharding_obstacle
from rollout.canary import canary_rows
from rollout.errors import RolloutInputError
from rollout.prompts import (
    ANSWER_COLUMNS,
    LoadedPrompts,
    Prompt,
    load_prompts,
    render_prompt_ids,
    split_over_iterations,
)

logger = logging.getLogger(__name__)

LISTED = 5
"""Over-long prompts named in a message; the rest is counted."""


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
                read[field] = _read(config, field, notes)
    faults.raise_found()
    # What follows imports transformers, which takes seconds: the mistakes above are told at once.
    train, heldout = _set_apart(config, read, notes)
    from reward.checkpoint import load_config, load_tokenizer

    with faults.noted("policy.model"):
        load_config(model, config.policy.trust_remote_code)
        tokenizer = load_tokenizer(model, config.policy.trust_remote_code)
    faults.raise_found()
    with faults.noted():
        train_ids = _tokenize(train, tokenizer, config, room, "training", notes)
    with faults.noted():
        heldout_ids = _tokenize(heldout, tokenizer, config, room, "held-out", notes)
    faults.raise_found()
    with faults.noted():
        split = _split(config, train_ids)
    faults.raise_found()
    longest = max(len(item.prompt_ids) for item in [*train_ids, *heldout_ids])
    canary = max(len(prompt) + len(answer) for prompt, answer in canary_rows(tokenizer))
    return Prepared(
        prompts=split,
        heldout=heldout_ids,
        max_model_len=max(longest + config.rollout.max_tokens, canary) + 8,
        data_sha256=data_hashes(config),
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
    obstacle = sharding_obstacle(sharding) if config.train.workers > 1 else None
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


def _split(config: RunConfig, items: list[TokenizedPrompt]) -> list[list[TokenizedPrompt]]:
    known = {item.prompt.prompt_id: item for item in items}
    split = split_over_iterations(
        tuple(item.prompt for item in items),
        iterations=config.iterations,
        per_iteration=config.prompts.per_iteration,
        disjoint=config.prompts.split == "disjoint",
        seed=config.seed,
    )
    return [[known[prompt.prompt_id] for prompt in prompts] for prompts in split]


def _set_apart(config: RunConfig, read: dict[str, list[Prompt]], notes: list[str]) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, none of them in both; raises UserError when too few are left."""
    train, count = read["train"], config.prompts.heldout_count
    if "heldout" in read:
        heldout = read["heldout"][:count]
        ids = {prompt.prompt_id for prompt in heldout}
        kept = [prompt for prompt in train if prompt.prompt_id not in ids]
        if not kept:
            raise UserError(
                f"prompts.heldout = {config.prompts.heldout}: it holds every prompt of prompts.train, none is left to "
                "train on; give it other prompts, lower prompts.heldout_count, or leave it out"
            )
        if len(kept) < len(train):
            notes.append(f"{len(train) - len(kept)} training prompts are held-out prompts and were left out")
        return kept, heldout
    if len(train) < count + config.iterations:
        raise UserError(
            f"prompts.heldout_count = {count}: the data set has only {len(train)} distinct prompts; give "
            "prompts.heldout a file of its own or lower prompts.heldout_count"
        )
    return train[:-count], train[-count:]


def _read(config: RunConfig, which: str, notes: list[str]) -> list[Prompt]:
    source, field = getattr(config.prompts, which), f"prompts.{which}"
    answers = config.baseline.column if config.baseline.kind == "answers" and which == "train" else None
    try:
        loaded: LoadedPrompts = load_prompts(
            source, column=config.prompts.column, answers=answers, skip_empty=config.prompts.empty == "skip"
        )
    except RolloutInputError as error:
        raise UserError(f"{field}: {error}") from None
    if loaded.duplicates:
        notes.append(f"{field}: {loaded.duplicates} rows repeat an earlier prompt and were left out")
    if loaded.empty:
        notes.append(f"{field}: {loaded.empty} rows have an empty prompt and were left out")
    bare = [prompt for prompt in loaded.prompts if not prompt.answers] if answers else []
    if bare:
        raise UserError(
            f"{field}: {len(bare)} of {len(loaded.prompts)} prompts have no answer for baseline.kind = 'answers', as "
            f"{bare[0].messages[-1][1][:40]!r}; expected one of {', '.join(ANSWER_COLUMNS)}, a last assistant turn, or "
            "the column that baseline.column names"
        )
    system = config.prompts.system
    return [_with_system(prompt, system) for prompt in loaded.prompts] if system else list(loaded.prompts)


def _with_system(prompt: Prompt, system: str) -> Prompt:
    if prompt.messages[0][0] == "system":
        return prompt
    return Prompt(prompt.prompt_id, (("system", system), *prompt.messages), prompt.answers)


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


def _tokenize(
    prompts: list[Prompt], tokenizer: Any, config: RunConfig, room: int, kind: str, notes: list[str]
) -> list[TokenizedPrompt]:
    items = [TokenizedPrompt(prompt, array("i", _render(tokenizer, prompt, kind))) for prompt in prompts]
    over_long = [item for item in items if len(item.prompt_ids) > room]
    if over_long:
        listed = "; ".join(
            f"{item.prompt.messages[-1][1][:40]!r} ({len(item.prompt_ids)} tokens)" for item in over_long[:LISTED]
        )
        message = f"{len(over_long)} of {len(items)} {kind} prompts are longer than {room} tokens: {listed}"
        if config.prompts.over_long == "refuse":
            raise UserError(f"{message}; shorten them, raise prompts.max_tokens, or set prompts.over_long=skip")
        if len(over_long) == len(items):
            raise UserError(
                f"{message}; none is left: raise prompts.max_tokens (now {config.prompts.max_tokens}) or lower "
                f"rollout.max_tokens (now {config.rollout.max_tokens}), as the model reads both together"
            )
        notes.append(f"{message}; they were left out")
    return [item for item in items if len(item.prompt_ids) <= room]


def _render(tokenizer: Any, prompt: Prompt, kind: str) -> list[int]:
    import jinja2

    try:
        return render_prompt_ids(tokenizer, prompt)
    except jinja2.TemplateError as error:
        text = prompt.messages[-1][1][:60]
        raise UserError(f"the chat template refuses the {kind} prompt {text!r}: {error}") from None
