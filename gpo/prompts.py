"""The prompts of a run: read, set apart, tokenised once, and split over the iterations.

Every mistake in them is a UserError that names the field; what was left out is a note for the log.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpo.config import RunConfig
from gpo.errors import UserError
from rollout.errors import RolloutInputError
from rollout.prompts import (
    ANSWER_COLUMNS,
    LoadedPrompts,
    Prompt,
    load_prompts,
    render_prompt_ids,
    split_over_iterations,
)

LISTED = 5
"""Over-long prompts named in a message; the rest is counted."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt and its ids under the policy's template; tokenised once in a run."""

    prompt: Prompt
    prompt_ids: Sequence[int]
    """`tokenize` makes them arrays: the driver holds every prompt of a run, and a list takes eight times as much."""


def read_prompts(config: RunConfig, which: str, notes: list[str]) -> list[Prompt]:
    """Those of `prompts.train` or `prompts.heldout`; raises UserError for rows that are no prompts."""
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


def set_apart(config: RunConfig, read: dict[str, list[Prompt]], notes: list[str]) -> tuple[list[Prompt], list[Prompt]]:
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
    needed = config.iterations if config.prompts.split == "disjoint" else 1
    if len(train) < count + needed:
        raise UserError(
            f"prompts.heldout_count = {count}: the data set has only {len(train)} distinct prompts; give "
            "prompts.heldout a file of its own or lower prompts.heldout_count"
        )
    return train[:-count], train[-count:]


def tokenize(
    prompts: list[Prompt], tokenizer: Any, config: RunConfig, room: int, kind: str, notes: list[str]
) -> list[TokenizedPrompt]:
    """Prompts under the policy's template, none beyond `room` tokens; raises UserError where told to refuse such."""
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


def split_prompts(config: RunConfig, items: list[TokenizedPrompt]) -> list[list[TokenizedPrompt]]:
    """The prompts of each iteration."""
    known = {item.prompt.prompt_id: item for item in items}
    split = split_over_iterations(
        tuple(item.prompt for item in items),
        iterations=config.iterations,
        per_iteration=config.prompts.per_iteration,
        disjoint=config.prompts.split == "disjoint",
        seed=config.seed,
    )
    return [[known[prompt.prompt_id] for prompt in prompts] for prompts in split]
