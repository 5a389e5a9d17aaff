"""A data set becomes prompts with stable ids, split over iterations.

Reads JSON (a list), JSON Lines, Parquet and Hugging Face data sets, and recognises the usual columns:
`messages`, `prompt` (text or messages), `instruction` with an optional `input`. Nothing here loads a model;
the tokenizer is only needed to render and measure.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rollout.errors import RolloutInputError

Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")
COLUMNS = "`messages`, `prompt`, or `instruction` (with `input`)"


class ChatTokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: list[Message], **kwargs: Any) -> Any:
        """Render a conversation."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages that end before the answer, and an id made of their content."""

    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    """(role, content) of each turn."""
    answers: tuple[str, ...] = ()
    """Those that the data set gives, where they were asked for."""

    def as_messages(self) -> list[Message]:
        """The turns as a chat template wants them."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """Distinct prompts in file order, how many rows repeated one, and how many were empty."""

    prompts: tuple[Prompt, ...]
    duplicates: int
    empty: int = 0


class EmptyPromptError(RolloutInputError):
    """A row whose prompt has no text."""


def load_prompts(
    source: str, *, column: str = "auto", answers: str | None = None, skip_empty: bool = False
) -> LoadedPrompts:
    """Read a file or a hub data set (`hub:NAME[:SPLIT]`).

    `answers`: a column with the data set's answers, or `auto` to try the known ones; rows that repeat a prompt add
    theirs. Raises RolloutInputError that names the file and, for a bad row, its number (counted from 1).
    """
    seen: dict[str, Prompt] = {}
    duplicates, empty = 0, 0
    for number, row in enumerate(read_rows(source), start=1):
        where = f"{source}, row {number}"
        try:
            prompt = prompt_of_row(row, column=column, where=where)
        except EmptyPromptError:
            if not skip_empty:
                raise
            empty += 1
            continue
        found = answers_of_row(row, answers, where) if answers is not None else ()
        if prompt.prompt_id in seen:
            duplicates += 1
            found = tuple(dict.fromkeys(seen[prompt.prompt_id].answers + found))
        if prompt.prompt_id not in seen or found:
            seen[prompt.prompt_id] = Prompt(prompt.prompt_id, prompt.messages, found)
    if not seen:
        raise RolloutInputError(f"{source}: there is no row in it; expected at least one with {COLUMNS}")
    return LoadedPrompts(tuple(seen.values()), duplicates, empty)


ANSWER_COLUMNS = ("answers", "answer", "output", "completion", "response", "chosen")


def answers_of_row(row: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    """The data set's answers to a row's prompt: text, a list of texts, or messages that end with the answer."""
    if column != "auto" and column not in row:
        raise RolloutInputError(f"{where}: no column {column!r} with answers; it has {sorted(row)}")
    names = ANSWER_COLUMNS if column == "auto" else (column,)
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None and column == "auto":
        value = next((row[name] for name in ("messages", "prompt") if isinstance(row.get(name), list)), [])[-1:]
        last: Any = value[0] if value else None
        value = value if isinstance(last, Mapping) and last.get("role") == "assistant" else []
    if value is not None and not isinstance(value, str | list | tuple):
        raise RolloutInputError(f"{where}: answers must be text or a list of texts, found {type(value).__name__}")
    values: list[Any] = [value] if isinstance(value, str) else list(value or [])
    if values and isinstance(values[0], Mapping):
        values = [values[-1].get("content")]
    if not all(isinstance(text, str) for text in values):
        raise RolloutInputError(f"{where}: answers must be text or a list of texts, found other things in the list")
    return tuple(text for text in dict.fromkeys(values) if text.strip())


def read_rows(source: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a JSON, JSON Lines or Parquet file, or of a hub data set."""
    if source.startswith("hub:"):
        yield from _hub_rows(source)
        return
    path = Path(source)
    if not path.is_file():
        raise RolloutInputError(
            f"{source}: no such file; expected .json, .jsonl or .parquet, or hub:NAME[:SPLIT] for a hub data set"
        )
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix in (".json", ".jsonl"):
        yield from _json_rows(path)
    else:
        raise RolloutInputError(f"{source}: ending {path.suffix!r} is not known; expected .json, .jsonl or .parquet")


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """A list in one document, or an object a line (some `.json` files hold JSON Lines)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RolloutInputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise RolloutInputError(f"{path} cannot be read ({error.strerror}); expected a readable file") from None
    if text.lstrip().startswith("["):
        rows = _parsed(text, path, first_line=1)
        yield from (_as_mapping(row, f"{path}, row {n}") for n, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _as_mapping(_parsed(line, path, first_line=number), f"{path}, line {number}")


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise RolloutInputError(f"{path}, line {line}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # an endless number, or brackets without end
        raise RolloutInputError(f"{path}, line {first_line}: not valid JSON ({error})") from None


def _as_mapping(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise RolloutInputError(f"{where}: expected an object with {COLUMNS}, found {type(row).__name__}")
    return row


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RolloutInputError(f"{path}: not a readable Parquet file ({error})") from None


def _hub_rows(source: str) -> Iterator[Mapping[str, Any]]:
    """`hub:NAME` reads the split `train`; `hub:NAME:SPLIT` another one. Raises RolloutInputError, with a way on."""
    name, _, split = source.removeprefix("hub:").partition(":")
    import datasets

    try:
        yield from datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # A set that is made by a script, such as AlpacaEval's, is a RuntimeError: `datasets` runs no scripts any more.
        raise RolloutInputError(
            f"{source}: the hub data set cannot be read ({error}); where it cannot be mended, download the file with "
            "its rows and give that: .json, .jsonl or .parquet"
        ) from None


def prompt_of_row(row: Mapping[str, Any], *, column: str, where: str) -> Prompt:
    """The prompt of one row; a last assistant turn in `messages` is the data set's answer and is left out."""
    messages = _messages_of_row(row, column, where)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or not messages[-1]["content"].strip():
        raise EmptyPromptError(f"{where}: the prompt is empty; expected text in {COLUMNS}")
    turns = tuple((message["role"], message["content"]) for message in messages)
    try:
        digest = hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()
    except UnicodeEncodeError:
        raise RolloutInputError(f"{where}: half a surrogate pair, which no tokenizer reads; mend the text") from None
    return Prompt(prompt_id=digest[:16], messages=turns)


def _messages_of_row(row: Mapping[str, Any], column: str, where: str) -> list[Message]:
    if column != "auto":
        if row.get(column) is None:
            raise RolloutInputError(f"{where}: no column {column!r}; it has {sorted(row)}")
        return _as_messages(row[column], where)
    for name in ("messages", "prompt"):
        if row.get(name) is not None:
            return _as_messages(row[name], where)
    if row.get("instruction") is not None:
        parts = [row["instruction"], row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise RolloutInputError(f"{where}: `instruction` and `input` must be text")
        return _as_messages("\n\n".join(part for part in parts if part.strip()), where)
    raise RolloutInputError(f"{where}: no prompt; expected {COLUMNS}, it has {sorted(row)}")


def _as_messages(value: Any, where: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list | tuple) or not value:
        raise RolloutInputError(f"{where}: expected text or a list of messages, found {type(value).__name__}")
    messages: list[Message] = []
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str) or turn.get("role") not in ROLES:
            raise RolloutInputError(f"{where}: a message needs `role` (one of {', '.join(ROLES)}) and text `content`")
        messages.append({"role": turn["role"], "content": turn["content"]})
    return messages


def render_prompt_ids(tokenizer: ChatTokenizer, prompt: Prompt) -> list[int]:
    """Token ids up to where the answer begins; rendered and tokenised in one step, so BOS is never doubled."""
    rendered = tokenizer.apply_chat_template(
        prompt.as_messages(), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(rendered["input_ids"])


def split_over_iterations(
    prompts: tuple[Prompt, ...], *, iterations: int, per_iteration: int | None, disjoint: bool, seed: int
) -> list[tuple[Prompt, ...]]:
    """The prompts of each iteration, in a seeded order.

    `disjoint`: every prompt at most once over the run. Otherwise each iteration takes its own draw of the whole.
    Raises RolloutInputError when there are too few.
    """
    wanted = per_iteration or (len(prompts) // iterations if disjoint else len(prompts))
    needed = wanted * iterations if disjoint else wanted
    if wanted < 1 or needed > len(prompts):
        raise RolloutInputError(
            f"prompts.per_iteration = {per_iteration} with iterations = {iterations} and "
            f"prompts.split = {'disjoint' if disjoint else 'whole'} needs {max(needed, iterations)} distinct prompts, "
            f"there are {len(prompts)}; lower prompts.per_iteration or set prompts.split=whole"
        )
    if disjoint:
        order = random.Random(seed).sample(prompts, len(prompts))
        return [tuple(order[t * wanted : (t + 1) * wanted]) for t in range(iterations)]
    return [tuple(random.Random(f"{seed}/{t}").sample(prompts, wanted)) for t in range(iterations)]
