"""An output that grows by whole lines in `NAME.part` and gets its name when it is complete.
What it is: the restart of a job over a file. `NAME.part.meta` beside it (JSON) says what the lines were made from;
lines made from the same are kept and gone on from, others are thrown away, and that is said. What it is not:
it does not know what a line means.

One process at a time holds a part file.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from reward.errors import RewardInputError

logger = logging.getLogger(__name__)

Line = dict[str, Any]
Join = Callable[[Path, Iterator[Line]], None]
"""Writes all lines to a file in another form."""


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a place where the output cannot go; makes its folder."""
    if output.is_dir():
        raise RewardInputError(f"{output} is a folder, expected the name of a file to write")
    if output.exists() and not overwrite:
        raise RewardInputError(f"{output} exists already; give another name, or --overwrite to replace it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RewardInputError(f"{output.parent} cannot be made a folder ({error.strerror}); give another") from None
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise RewardInputError(f"{output.parent}: this user may not write there; give another folder")


class PartFile:
    """A context in which lines are read and added; `finish` gives the output its name."""

    def __init__(self, output: Path, made_from: Mapping[str, str], join: Join | None = None) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.part")
        self.side = output.with_name(f"{output.name}.part.meta")
        self._made_from = dict(made_from)
        self._join = join
        self._stream: IO[bytes]

    def __enter__(self) -> "PartFile":
        self._stream = self.path.open("a+b")
        try:
            self._lock()
            if self._is_usable():
                self._stream.truncate(self._whole_bytes())
            else:
                self._stream.truncate(0)
                self._write_side()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def lines(self) -> Iterator[Line]:
        """All lines so far."""
        self._stream.seek(0)
        for line in self._stream:
            yield json.loads(line)

    def append(self, lines: Iterable[Line]) -> None:
        """Add lines and see them on disk."""
        # nan and inf are no JSON: with them in it others could not read the file.
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        self._stream.write(text.encode("ascii"))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def finish(self) -> None:
        """Give the output its name; what was there before is replaced."""
        if self._join is None:
            os.replace(self.path, self.output)
        else:
            joined = self.output.with_name(f"{self.output.name}.joining")
            self._join(joined, self.lines())
            os.replace(joined, self.output)
            self.path.unlink()
        self.side.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have renamed the file between our opening and locking it.
            ours = os.path.samestat(os.fstat(self._stream.fileno()), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise RewardInputError(f"{self.path}: another process is writing it; wait for it or give another output")

    def _is_usable(self) -> bool:
        if self._stream.seek(0, os.SEEK_END) == 0:
            return False
        try:
            found = json.loads(self.side.read_text("utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            logger.warning("%s: nothing says what its lines were made from, so it starts anew", self.path)
            return False
        other = sorted(key for key in {*found, *self._made_from} if found.get(key) != self._made_from.get(key))
        if other:
            logger.warning("%s was begun with other values of %s, so it starts anew", self.path, ", ".join(other))
        return not other

    def _whole_bytes(self) -> int:
        """Where the last whole line ends; what a crash left behind it is not one."""
        self._stream.seek(0)
        end = 0
        for line in self._stream:
            if not line.endswith(b"\n") or not _is_object(line):
                break
            end += len(line)
        return end

    def _write_side(self) -> None:
        fresh = self.side.with_name(f".{self.side.name}-{os.getpid()}")
        try:
            fresh.write_text(json.dumps(self._made_from, indent=2) + "\n", "utf-8")
            os.replace(fresh, self.side)
        finally:
            fresh.unlink(missing_ok=True)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
