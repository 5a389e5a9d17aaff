"""What a row of a file asks a reward model to compare: the forms of batch scoring.
What it is: pairs (as the training reads them, or in the authors' custom form) and groups of answers to one
prompt, every field checked. What it is not: it renders and tokenises nothing and needs neither torch nor
transformers, so that a whole file can be looked through before a model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reward.characters import check_characters
from reward.errors import RewardInputError
from reward.pairs import pair_of_row
from reward.row_files import FileRow, read_rows

if TYPE_CHECKING:
    from reward.encoding import ConversationEncoder, EncodedConversation

Talk = Sequence[dict[str, Any]]

FORMS = (
    "a pair (`chosen` and `rejected` as message lists; or `instruction`, `chosen`, `reject`) or a group "
    "(`prompt` as text or messages, `responses` as a list of texts)"
)
_PAIR_FIELDS = ("instruction", "chosen", "rejected", "reject")


@dataclass(frozen=True)
class Comparison:
    """Answers of one row that are compared with each other."""

    number: int
    """Of the row in its file."""
    is_pair: bool
    conversations: tuple[Talk, ...] = ()
    """Rendered with the model's template; the answer last."""
    custom: tuple[tuple[str, str], ...] = ()
    """(instruction, answer) instead of conversations: joined by spaces, without a template."""


def encode_comparisons(
    comparisons: Sequence[Comparison], encoder: "ConversationEncoder"
) -> "list[list[EncodedConversation]]":
    """Token rows of each one's answers, in order; conversations are tokenised together and equal prompts once.

    Raises RewardInputError that names the row.
    """
    talks = [(one.number, talk) for one in comparisons for talk in one.conversations]
    rows = iter(encoder.encode([talk for _, talk in talks], [number for number, _ in talks]))
    return [
        [encoder.encode_custom(instruction, answer, one.number) for instruction, answer in one.custom]
        or list(islice(rows, len(one.conversations)))
        for one in comparisons
    ]


class RowCounts(NamedTuple):
    """What is in a file."""

    rows: int
    custom: int
    """Rows in the authors' custom form, for which a model needs no chat template."""


def check_rows(path: Path, strict: bool) -> RowCounts:
    """Look through the file and count its rows; raises RewardInputError if it has none, or a bad one and `strict`."""
    count = custom = 0
    for row in read_rows(path):
        count += 1
        custom += row.value is not None and _is_custom(row.value)
        if strict:
            try:
                comparison_of_row(row)
            except RewardInputError as error:
                raise RewardInputError(f"{path}, {error}") from None
    if not count:
        raise RewardInputError(f"{path}: there are no rows in it; expected {FORMS}")
    return RowCounts(count, custom)


def comparison_of_row(row: FileRow) -> Comparison:
    """The checked row; raises RewardInputError that begins with `row N`."""
    where = f"row {row.number}"
    if row.value is None:
        raise RewardInputError(f"{where}: {row.fault}; expected {FORMS}")
    if row.value.get("responses") is not None:
        found = _group(row.number, row.value, where)
    elif _is_custom(row.value):
        found = _custom_pair(row.number, row.value, where)
    elif row.value.get("chosen") is not None:
        found = Comparison(row.number, True, _pair(row.value, where))
    else:
        columns = ", ".join(map(repr, row.value)) or "no fields"
        raise RewardInputError(f"{where}: neither `chosen` nor `responses`, found {columns:.200}; expected {FORMS}")
    _check_characters(found, where)
    return found


def _is_custom(row: Mapping[str, Any]) -> bool:
    """The authors' form says `reject`; `rejected` is a row of our training, which has a template."""
    if isinstance(row.get("chosen"), list) or row.get("rejected") is not None:
        return False
    return row.get("instruction") is not None and row.get("reject") is not None


def _pair(row: Mapping[str, Any], where: str) -> tuple[Talk, Talk]:
    pair = pair_of_row({field: row[field] for field in _PAIR_FIELDS if field in row}, where)
    if not isinstance(row["chosen"], list):
        return pair.chosen, pair.rejected
    second = row["reject"] if row.get("rejected") is None else row["rejected"]
    return [_whole(message) for message in row["chosen"]], [_whole(message) for message in second]


def _custom_pair(number: int, row: Mapping[str, Any], where: str) -> Comparison:
    instruction = _text(row["instruction"], f"{where}: instruction")
    chosen, reject = (_custom_answer(row.get(field), f"{where}: {field}") for field in ("chosen", "reject"))
    return Comparison(number, True, custom=((instruction, chosen), (instruction, reject)))


def _custom_answer(value: Any, what: str) -> str:
    if isinstance(value, dict):
        return _text(value.get("response"), f"{what}.response")
    if not isinstance(value, str):
        raise RewardInputError(f'{what} is {value!r:.60}, expected text or {{"response": text}}')
    return value


def _group(number: int, row: Mapping[str, Any], where: str) -> Comparison:
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise RewardInputError(f"{where}: responses is {responses!r:.60}, expected a list of at least one text")
    prompt = _prompt(row.get("prompt"), where)
    texts = [_text(text, f"{where}: response {place}") for place, text in enumerate(responses)]
    return Comparison(number, False, tuple([*prompt, {"role": "assistant", "content": text}] for text in texts))


def _prompt(value: Any, where: str) -> Talk:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise RewardInputError(f"{where}: prompt is {value!r:.60}, expected text or a list of messages")
    return [_message(message, f"{where}: message {place} of prompt") for place, message in enumerate(value)]


def _message(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RewardInputError(f"{what} is {value!r:.60}, expected {{role, content}}")
    for field in ("role", "content"):
        _text(value.get(field), f"{what}: {field}")
    return _whole(value)


def _whole(message: Mapping[str, Any]) -> dict[str, Any]:
    """With every key, because templates may read any; Parquet gives null where a message lacks one that others have."""
    return {key: value for key, value in message.items() if value is not None}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RewardInputError(f"{what} is {value!r:.60}, expected text")
    return value


def _check_characters(found: Comparison, where: str) -> None:
    """As the encoder does, but before a model is loaded."""
    values = [value for messages in found.conversations for one in messages for value in one.values()]
    for value in [*values, *(text for pair in found.custom for text in pair)]:
        if isinstance(value, str):
            check_characters(value, where)
