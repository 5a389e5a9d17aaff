"""What was judged is kept: one JSON line a judgement, on disk before the next one counts.

A start that is killed loses only the questions that were still open; all others are never asked again. The file is
only ever added to, and one process at a time holds it.
"""

import fcntl
import hashlib
import json
from pathlib import Path
from typing import IO, Any

from gpo.errors import UserError
from gpo.files import append_json_line, read_json_lines


class JudgementCache:
    """Answers of a judge by the hash of all that was asked."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when another process is at work with it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock: IO[str] = path.with_name(f"{path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path}: another evaluation is at work with it; wait for it or give another --cache"
            ) from None
        self._found = {line["key"]: line["value"] for line in read_json_lines(path) if "key" in line}

    def get(self, key: str) -> dict[str, Any] | None:
        """What an earlier question got."""
        return self._found.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep an answer; it is on disk when this returns."""
        append_json_line(self.path, {"key": key, "value": value})
        self._found[key] = value

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


def question_key(question: Any) -> str:
    """The hash of everything that decides an answer."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
