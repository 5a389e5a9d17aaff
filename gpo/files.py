"""Small files that are whole when they exist: temporary name, flush to disk, rename."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpo.errors import StageError, UserError

PART = ".part-"
"""In the name of a file that is being written, before its writer; `rollout` and `reward` name theirs alike."""

LONGEST_TOKEN = 16
"""Characters of a number, name or escape that a crash may have cut; a fault further from a line's end is a real one."""


def remove_parts(folder: Path) -> None:
    """Delete what processes that were killed while they wrote left below a folder where nobody writes now."""
    for path in list(folder.rglob(f".*{PART}*")):
        path.unlink(missing_ok=True)


def last_written(folder: Path, *without: Path) -> int:
    """When the newest file below a folder was written, in ns, but for those below `without`; 0 where there is none."""
    newest = 0
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(here) / name not in without]
        for name in names:
            try:
                newest = max(newest, (Path(here) / name).stat().st_mtime_ns)
            except FileNotFoundError:  # gone meanwhile
                continue
    return newest


def write_text(path: Path, text: str) -> None:
    """Replace the file at once; readers see the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nodes that share a disk count their processes alike.
    part = path.with_name(f".{path.name}{PART}{os.uname().nodename}-{os.getpid()}")
    try:
        with _naming(path), part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What fails to be written knows the reason (a full disk) but not of which file: say it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def file_hash(path: Path) -> str:
    """SHA-256 of the content, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole when it exists."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file that a run wrote; raises StageError naming the file where something damaged it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(
            f"{path} cannot be read ({error}), and the run wrote it whole: put a copy of the file in its place, or "
            "start anew with --fresh or another --run-dir"
        ) from None


def append_json_line(path: Path, value: Any) -> None:
    """Add a line and see it on disk before returning; a torn last line of a crash is ended first."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    with _naming(path), path.open("a+b") as stream:
        if stream.tell() and not _ends_with_newline(stream):
            stream.write(b"\n")
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _ends_with_newline(stream: Any) -> bool:
    stream.seek(-1, os.SEEK_END)
    return bool(stream.read(1) == b"\n")


def json_lines(path: Path, start: int = 0) -> Iterator[dict[str, Any]]:
    """Whole lines from a byte on, one at a time; what a crash left of a line is not one.

    Raises UserError for a line that is neither: nobody wrote it so.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if b"\0" in line:  # What a file system leaves in the place of what a crash lost.
                continue
            text = line.rstrip(b"\r\n").decode("utf-8", errors="replace")
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                if _is_torn(text, error):
                    continue
                raise _damaged(path, text, error.msg) from None
            except (ValueError, RecursionError) as error:
                raise _damaged(path, text, str(error)) from None
            if not isinstance(value, dict):
                raise _damaged(path, text, f"found {type(value).__name__}, expected an object")
            yield value


def _is_torn(text: str, error: json.JSONDecodeError) -> bool:
    """Whether it may be the beginning of an object: only its end is wrong, or it ends within a text."""
    begins = text.startswith("{") or not text
    return begins and (error.msg.startswith("Unterminated") or len(text) - error.pos < LONGEST_TOKEN)


def _damaged(path: Path, text: str, why: str) -> UserError:
    return UserError(
        f"{path}: damaged at {text:.120} ({why:.80}); put a copy of the file in its place, or take the line out: what "
        "it tells of is done again"
    )


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines, as `json_lines` reads them."""
    return list(json_lines(path))
