"""Rows of a data file, one after the other: JSON Lines, one JSON list, Parquet.
What it is: a stream whose memory does not grow with the file. A line that holds no object comes with its
fault, so that the caller may go on behind it. What it is not: it knows no columns.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reward.errors import RewardInputError

ENDINGS = (".jsonl", ".json", ".parquet")
_PIECE_CHARACTERS = 1 << 20
_PARQUET_ROWS = 64
_WHITE = re.compile(r"[ \t\n\r]*")
_LONGEST_TOKEN = 16
"""Characters of a name, number or escape that a piece may have cut; a fault further from its end is a real one."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row, or what is wrong with it."""

    number: int
    """Counted from 1; in JSON Lines the line."""
    value: Mapping[str, Any] | None
    fault: str = ""


def read_rows(path: Path) -> Iterator[FileRow]:
    """Every row in order; raises RewardInputError when the file as a whole cannot be read."""
    if not path.is_file():
        raise RewardInputError(f"{path}: no such file; expected rows as {', '.join(ENDINGS)}")
    if path.suffix not in ENDINGS:
        raise RewardInputError(f"{path}: ending {path.suffix!r}, expected one of {', '.join(ENDINGS)}")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix == ".json" and _opens_a_list(path):
        return _list_rows(path)
    return _line_rows(path)


def _line_rows(path: Path) -> Iterator[FileRow]:
    """An object a line; blank lines are no rows, but count as lines."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parsed(number, line)


def _parsed(number: int, line: bytes) -> FileRow:
    try:
        return _row(number, json.loads(line))
    except json.JSONDecodeError as error:
        return FileRow(number, None, f"not valid JSON ({error.msg} at character {error.colno})")
    except (ValueError, RecursionError) as error:
        return FileRow(number, None, f"not valid JSON ({str(error):.80})")


def _row(number: int, value: Any) -> FileRow:
    if isinstance(value, dict):
        return FileRow(number, value)
    return FileRow(number, None, f"found {type(value).__name__}, expected an object")


def _parquet_rows(path: Path) -> Iterator[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield _row(number, value)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RewardInputError(f"{path}: not readable Parquet after row {number} ({error}); copy it again") from None


def _opens_a_list(path: Path) -> bool:
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_CHARACTERS):
            text = piece.removeprefix(b"\xef\xbb\xbf").lstrip()
            if text:
                return text.startswith(b"[")
    return False


def _list_rows(path: Path) -> Iterator[FileRow]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for value in _ListReader(stream).elements():
                number += 1
                yield _row(number, value)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise RewardInputError(f"{path}: not a JSON list after row {number} ({reason:.80}), expected one") from None


class _ListReader:
    """Elements of a JSON list; holds a piece of the text and at most one element that crosses its end."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def elements(self) -> Iterator[Any]:
        """Raises ValueError where the text is no list."""
        self._expect("[")
        if self._peek() != "]":
            yield self._element()
            while self._peek() == ",":
                self._at += 1
                yield self._element()
        self._expect("]")
        if self._peek():
            raise ValueError("there is text behind the list")

    def _expect(self, mark: str) -> None:
        found = self._peek()
        if found != mark:
            raise ValueError(f"found {found or 'the end'!r} where {mark!r} was expected")
        self._at += 1

    def _peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self._at = self._behind_white(self._at)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _element(self) -> Any:
        if self._at > _PIECE_CHARACTERS // 2:
            self._text, self._at = self._text[self._at :], 0
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not (self._is_cut(error) and self._more()):
                    raise
                continue
            if not self._may_go_on(end) or not self._more():
                self._at = end
                return value

    def _may_go_on(self, end: int) -> bool:
        """Whether what was read up to `end` may be a beginning: `1` of `12`, or of `1.5` where it ends behind `1.`."""
        behind = self._behind_white(end)
        return behind == len(self._text) or (self._text[behind] not in ",]" and len(self._text) - end < _LONGEST_TOKEN)

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated") or len(self._text) - error.pos < _LONGEST_TOKEN

    def _behind_white(self, start: int) -> int:
        found = _WHITE.match(self._text, start)
        return found.end() if found else start

    def _more(self) -> bool:
        piece = self._stream.read(_PIECE_CHARACTERS)
        self._text += piece
        return bool(piece)
