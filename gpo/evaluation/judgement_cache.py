"""What was judged is kept: one JSON line a judgement, on disk before the next one counts.

A start that is killed loses only the questions that were still open; all others are never asked again. The file is
only ever added to, and one process at a time holds it.
"""

import fcntl
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from gpo.errors import UserError
from gpo.evaluation.folders import make_folder
from gpo.files import append_json_line, read_json_lines


class JudgementCache:
    """Answers of a judge by the hash of all that was asked, and the tokens that these questions took."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when another process is at work with it, or its folder cannot be made."""
        make_folder("--cache", path.parent)
        self.path = path
        self._lock: IO[str] = path.with_name(f"{path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path}: another evaluation is at work with it; wait for it or give another --cache"
            ) from None
        self._found: dict[str, dict[str, Any]] = {}
        self._tokens: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for line in read_json_lines(path):
            self._take(line)

    def get(self, key: str) -> dict[str, Any] | None:
        """What an earlier question got."""
        return self._found.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._add({"key": key, "value": value})

    def put_unusable(self, key: str, tokens: Mapping[str, int]) -> None:
        """Keep what an answer without use took: it is paid for like any other."""
        if any(tokens.values()):
            self._add({"key": key, "unusable": dict(tokens)})

    def tokens(self, keys: Iterable[str]) -> dict[str, int]:
        """Of all answers to these questions by any start, usable or not; a question that occurs twice counts once."""
        total = Counter(prompt=0, completion=0)
        for key in set(keys):
            total.update(self._tokens[key])
        return dict(total)

    def _add(self, line: dict[str, Any]) -> None:
        append_json_line(self.path, line)
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "value" in line:
            self._found[line["key"]] = line["value"]
            self._tokens[line["key"]].update(line["value"]["tokens"])
        elif "unusable" in line:
            self._tokens[line["key"]].update(line["unusable"])

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


def question_key(question: Any) -> str:
    """The hash of everything that decides an answer."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
