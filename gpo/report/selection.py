"""Which prompts of a run a sample browser holds, by a rule that is said."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest

from gpo.journal import RunDirectory
from gpo.report.samples import Appearance, ShownPrompt, heldout_ids, read_prompts, training_ids

MOST_BYTES = 64_000_000
"""Of all shown prompts, before they are packed: a page of about 30 MB, which a browser opens in a second or two."""
NUMBER_BYTES = 8
"""A score in a table, about."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The prompts to show and how many there are."""

    prompts: list[ShownPrompt]
    total: int
    most_bytes: int | None = None
    """The limit that ended it before its number of prompts was full."""

    def rule(self) -> str:
        """What is shown, in a sentence or a few."""
        if len(self.prompts) == self.total:
            return f"All {self.total:,} prompts are shown."
        said = (
            f"{len(self.prompts):,} of {self.total:,} prompts are shown: by turns a held-out one, which every "
            "iteration answers, and a training one, each from the smallest id on. An id is a hash of the prompt, so "
            "this is a random sample, and the same one each time."
        )
        if self.most_bytes is not None:
            said += f" More than these would be over {self.most_bytes / 1e6:.0f} MB of text."
        return said


def select_prompts(directory: RunDirectory, limit: int, most_bytes: int = MOST_BYTES) -> Selection:
    """Prompts of a run in the order of their ids, each with all its appearances.

    At most `limit`, and as many as `most_bytes` hold, but one at least.
    """
    heldout = heldout_ids(directory)
    order = _by_turns(sorted(heldout), sorted(training_ids(directory) - heldout))
    prompts = {prompt.prompt_id: prompt for prompt in read_prompts(directory, order[:limit])}
    chosen: list[ShownPrompt] = []
    size = 0
    for prompt_id in order[:limit]:
        size += _bytes(prompts[prompt_id])
        if chosen and size > most_bytes:
            break
        chosen.append(prompts[prompt_id])
    full = len(chosen) < len(prompts)
    chosen.sort(key=lambda prompt: prompt.prompt_id)
    return Selection(chosen, len(order), most_bytes if full else None)


def _by_turns(one: list[str], other: list[str]) -> list[str]:
    pairs = chain.from_iterable(zip_longest(one, other))
    return [prompt_id for prompt_id in pairs if prompt_id is not None]


def _bytes(prompt: ShownPrompt) -> int:
    texts = (message["content"] for message in prompt.messages)
    return _length(texts) + sum(map(_appearance_bytes, prompt.appearances))


def _appearance_bytes(appearance: Appearance) -> int:
    tables = [table for table in (appearance.table, appearance.own_table) if table]
    numbers = sum(len(line) for table in tables for line in table)
    return _length(answer.text for answer in appearance.answers) + NUMBER_BYTES * numbers


def _length(texts: Iterable[str]) -> int:
    # A damaged row may hold half a surrogate pair, which UTF-8 has no bytes for.
    return sum(len(text.encode("utf-8", "replace")) for text in texts)
