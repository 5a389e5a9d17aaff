"""Conversations to token rows: the one path for training, evaluation, scoring and ranking.
The reference rule: render with the checkpoint's own template, tokenise with special tokens enabled (so BOS
is often doubled), keep the first `max_length` ids, overwrite the last kept one with EOS; the gate is read
at the last token of message 0 rendered alone. `RewardSettings` names the deviations. Special-token
spellings inside a text become the real special tokens, as published. What it is not: it pads nothing and
runs no model.

Under truncation "prompt" each row drops the ids right after its leading BOS, by itself; if that takes the
token where the gate would be read, the gate is read at the last prompt token that is kept.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from reward.characters import check_characters
from reward.errors import RewardInputError
from reward.settings import RewardSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Message = Mapping[str, str]
Conversation = Sequence[Message]


@dataclass(frozen=True)
class EncodedConversation:
    """One unpadded row."""

    input_ids: list[int]
    prompt_end: int
    """Index into `input_ids` of the token where the gate is read."""
    prompt_len: int
    """Ids of the gate's prompt that were kept; the answer's share is len(input_ids) - prompt_len."""
    truncated: bool
    prompt_is_prefix: bool
    """Whether the prompt rendered alone gives the very ids the whole row starts with."""


class ConversationEncoder:
    """Turns conversations into rows under one set of policies; keeps no state but which warnings were given."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        settings: RewardSettings,
        max_length: int,
        vocabulary: int | None = None,
    ) -> None:
        """Raises RewardInputError for a max_length below 1 and for a tokenizer without EOS.

        `vocabulary`: the ids that the model has embeddings of; a row with an id beyond it is refused.
        """
        if max_length < 1:
            raise RewardInputError(f"max_length is {max_length}, expected the number of ids to keep, at least 1")
        if tokenizer.eos_token_id is None:
            raise RewardInputError("the tokenizer has no EOS token, at which embeddings are read; set eos_token")
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_length = max_length
        # Most tokenizers cannot go beyond it, and rows of those are not looked at.
        self._vocabulary = vocabulary if vocabulary is not None and len(tokenizer) > vocabulary else None
        self._warned: set[str] = set()

    def encode(
        self, conversations: Sequence[Conversation], numbers: Sequence[int] | None = None
    ) -> list[EncodedConversation]:
        """A row for each conversation, in order; equal prompts are rendered and tokenised once.

        Raises RewardInputError that names a bad conversation by its place, or by its number in `numbers`.
        """
        named = list(zip(range(len(conversations)) if numbers is None else numbers, conversations, strict=True))
        for number, messages in named:
            self._check(messages, number)
        wanted = [(number, part) for number, messages in named for part in self._parts(messages)]
        ids = self._ids_by_key(wanted)
        encoded = []
        for number, messages in named:
            whole, gate_prompt, *before = [ids[_key(part)] for part in self._parts(messages)]
            answer_start = self._answer_start(messages, whole, before[0], number) if before else 0
            encoded.append(self._row(whole, gate_prompt, answer_start, number))
        return encoded

    def encode_custom(self, instruction: str, answer: str, row: int = 0) -> EncodedConversation:
        """The template-less training format: instruction, answer and EOS joined with single spaces.

        Raises RewardInputError that names `row` for text that no tokenizer takes.
        """
        whole = f"{instruction} {answer} {self.tokenizer.eos_token}"
        check_characters(whole, f"row {row}")
        ids, prompt_ids = self._tokenise([whole, instruction])
        return self._row(ids, prompt_ids, _shared_ids(ids, prompt_ids), row)

    def _parts(self, messages: Conversation) -> list[Conversation]:
        """What a row renders: the whole, the gate's prompt and, if prompts are cut, all before the answer."""
        first_message = self.settings.gate_prompt == "first_message"
        parts = [messages, messages[:1] if first_message else messages[:-1]]
        if self.settings.truncation == "prompt" and len(messages) > 1:
            parts.append(messages[:-1])
        return parts

    def _answer_start(self, messages: Conversation, whole: list[int], before: list[int], row: int) -> int:
        """Ids in front of the answer; `before` are those of the messages before it, rendered alone."""
        if whole[: len(before)] == before or len(whole) < self.max_length:
            return len(before)
        self._warn_cut(row)
        # Rows that differ in the answer alone part where it begins, whatever the template says before.
        [empty] = self._tokenise([self._render([*messages[:-1], {**messages[-1], "content": ""}], row)])
        return _shared_ids(whole, empty)

    def _check(self, messages: Conversation, row: int) -> None:
        if isinstance(messages, str) or not isinstance(messages, Sequence) or len(messages) == 0:
            raise RewardInputError(f"row {row} is {messages!r:.80}, expected a list of {{role, content}} messages")
        for place, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise RewardInputError(f"row {row}, message {place} is {message!r:.80}, expected {{role, content}}")
            for field in ("role", "content"):
                if not isinstance(message.get(field), str):
                    raise RewardInputError(
                        f"row {row}, message {place}: {field} is {message.get(field)!r:.60}, not a string"
                    )
        if messages[-1]["role"] != "assistant":
            raise RewardInputError(
                f"row {row} ends with a {messages[-1]['role']!r} message, expected the assistant's answer, "
                "which is what gets scored; append it"
            )
        if len(messages) == 1 and self.settings.gate_prompt == "all_but_last":
            raise RewardInputError(f"row {row} is an answer without a prompt; expected a user message before it")

    def _ids_by_key(self, wanted: Sequence[tuple[int, Conversation]]) -> dict[str, list[int]]:
        """Ids of (row, messages) by content, each content rendered and tokenised once."""
        texts: dict[str, str] = {}
        for row, messages in wanted:
            key = _key(messages)
            if key not in texts:
                texts[key] = self._render(messages, row)
        return dict(zip(texts, self._tokenise(list(texts.values())), strict=True))

    def _render(self, messages: Conversation, row: int) -> str:
        if not self.tokenizer.chat_template:
            raise RewardInputError(
                f"row {row}: the tokenizer has no chat template, expected the one the reward model was trained with; "
                "set tokenizer.chat_template, or use the custom instruction/answer format"
            )
        try:
            text = str(self.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False))
        except (TemplateError, TypeError, ValueError) as error:  # the latter for keys of another kind than it expects
            roles = ", ".join(message["role"] for message in messages)
            raise RewardInputError(
                f"row {row}: the chat template refuses the messages ({error}); found the roles {roles}, "
                "expected those the template knows"
            ) from error
        check_characters(text, f"row {row}")
        return text

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        batch = self.tokenizer(texts, add_special_tokens=True, truncation=False, padding=False, verbose=False)
        return [self._apply_bos(list(ids)) for ids in batch["input_ids"]]

    def _apply_bos(self, ids: list[int]) -> list[int]:
        keep = {"reference": len(ids), "single": 1, "none": 0}[self.settings.bos_policy]
        run = self._leading_bos(ids)
        if run > keep == 0 and self.tokenizer.bos_token_id in ids[run:]:
            self._warn_bos()
        return ids[max(run - keep, 0) :]

    def _leading_bos(self, ids: list[int]) -> int:
        bos = self.tokenizer.bos_token_id
        return next((place for place, token in enumerate(ids) if bos is None or token != bos), len(ids))

    def _row(self, ids: list[int], prompt_ids: list[int], answer_start: int, row: int) -> EncodedConversation:
        is_prefix = ids[: len(prompt_ids)] == prompt_ids
        if not is_prefix:
            self._warn_prefix(row)
        eos = self.tokenizer.eos_token_id
        append = self.settings.eos_policy == "append" and ids[-1:] != [eos]
        room = self.max_length - append
        lead, drop = self._prompt_cut(ids, answer_start, room)
        kept = (ids[:lead] + ids[lead + drop :])[:room]
        if append or not kept:
            kept = [*kept, eos]
        else:
            kept[-1] = eos
        self._check_ids(kept, row)
        prompt_len = len(prompt_ids)
        if drop:
            prompt_len = prompt_len - drop if prompt_len > lead + drop else answer_start - drop
        prompt_len = min(prompt_len, len(kept))
        return EncodedConversation(kept, max(prompt_len - 1, 0), prompt_len, len(ids) > room, is_prefix)

    def _check_ids(self, ids: list[int], row: int) -> None:
        if self._vocabulary is not None and max(ids) >= self._vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise RewardInputError(
                f"row {row}: the tokenizer gives {token!r:.40} the id {max(ids)}, and the model has embeddings of "
                f"{self._vocabulary} ids only; tokenizer and model do not belong together, copy the checkpoint again"
            )

    def _prompt_cut(self, ids: list[int], answer_start: int, room: int) -> tuple[int, int]:
        """(leading BOS ids to keep, ids to drop after them); the prompt always keeps its last id."""
        if self.settings.truncation != "prompt":
            return 0, 0
        lead = self._leading_bos(ids)
        droppable = max(answer_start - lead - 1, 0)
        return lead, min(max(len(ids) - room, 0), droppable)

    def _warn_once(self, text: str, *values: object) -> None:
        """Of what a template or tokenizer does to all rows alike; the text is what makes it the same warning."""
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text, *values)

    def _warn_bos(self) -> None:
        self._warn_once(
            "bos_policy 'none' takes %r away from the beginning of rows in which it comes again: where the chat "
            "template marks every turn with it, as SmolLM2's does, the first turn loses its mark; 'reference' keeps "
            "it. Said once.",
            self.tokenizer.bos_token,
        )

    def _warn_prefix(self, row: int) -> None:
        self._warn_once(
            "row %d: the prompt rendered alone is not a token prefix of the whole conversation, so the gate "
            "is not read exactly at the prompt's end; template or tokenizer joins the two. Said once; "
            "EncodedConversation.prompt_is_prefix marks every such row.",
            row,
        )

    def _warn_cut(self, row: int) -> None:
        self._warn_once(
            "row %d: the messages before the answer rendered alone are not a token prefix of the whole conversation; "
            "so where the answer begins, which truncation 'prompt' keeps, is found by rendering it empty. Said once.",
            row,
        )


def _shared_ids(one: list[int], other: list[int]) -> int:
    """How many ids two rows begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _key(messages: Conversation) -> str:
    # Templates may read any key of a message, so equality is of whole messages.
    return json.dumps([dict(message) for message in messages], sort_keys=True, default=repr)
