"""A run directory's copy at a URL: behind every finished stage it is brought up to date, and a run can begin from it.

Any URL of pyarrow's file systems (s3://, gs://, hdfs://, file://) or, beyond these, of fsspec. The journal is written
last, so that what it calls finished is there. A directory that is behind its copy, or beside it, is refused: its first
copy would delete what is ahead.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from gpo.config import ClusterConfig
from gpo.errors import StageError, UserError, reason_of

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names."""


class Storage:
    """The copy of one run directory."""

    def __init__(self, url: str, root: Path) -> None:
        """Raises UserError where the URL cannot be used."""
        self._url = url
        self._root = root
        self._system, self._base = _file_system(url)
        self._copied: dict[str, tuple[int, int]] = {}

    def restore(self) -> bool:
        """Fill an empty run directory from the copy; whether there was one.

        Raises UserError when the directory holds a run that is not ahead of its copy, StageError for a URL that cannot
        be read.
        """
        try:
            return self._restore()
        except OSError as error:
            raise self._unreadable(error) from error

    def state(self) -> str | None:
        """run.json of the copy; None: there is none. Raises StageError for a URL that cannot be read."""
        from pyarrow.fs import FileType

        path = f"{self._base}/run.json"
        try:
            if self._system.get_file_info(path).type != FileType.File:
                return None
            with self._system.open_input_stream(path) as stream:
                return str(stream.read(), "utf-8", "replace")
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> StageError:
        return StageError(
            f"cluster.storage = {self._url}: cannot be read ({reason_of(error)}); mend it, then start the same command "
            "again"
        )

    def _restore(self) -> bool:
        names = self._there()
        if (self._root / "run.json").exists():
            self._check_ahead(names)
            return False
        if "run.json" not in names:
            return False
        logger.info("the run directory %s is empty and is filled from %s", self._root, self._url)
        for name in sorted(names, key=lambda name: (name == "run.json", name)):
            target = self._root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            with self._system.open_input_stream(f"{self._base}/{name}") as source, part.open("wb") as stream:
                shutil.copyfileobj(source, stream)
            part.rename(target)
            self._copied[name] = _signature(target)
        return True

    def _check_ahead(self, names: dict[str, Any]) -> None:
        """Lines of a journal are only ever added, so the copy's must be the beginning of ours."""
        if JOURNAL not in names:
            return
        with self._system.open_input_stream(f"{self._base}/{JOURNAL}") as stream:
            there = stream.read()
        ours = self._root / JOURNAL
        if not (ours.exists() and ours.read_bytes().startswith(there)):
            raise UserError(
                f"{self._root}: its copy at {self._url} has gone on without it (their journals differ); to go on from "
                "the copy, start with an empty --run-dir of the same name; to throw the copy away, delete it there"
            )

    def save(self) -> None:
        """Copy what is new or changed, and drop there what is gone here; raises StageError where that fails."""
        try:
            self._save()
        except OSError as error:
            raise StageError(
                f"cluster.storage = {self._url}: cannot be written ({reason_of(error)}); the run directory "
                f"{self._root} is whole. Mend it, then start the same command again"
            ) from error

    def _save(self) -> None:
        here = {
            path.relative_to(self._root).as_posix(): path
            for path in self._root.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        there = self._there()
        for name in sorted(here, key=lambda name: (name == JOURNAL, name)):
            signature = _signature(here[name])
            if self._copied.get(name) != signature and not (name in there and _is_copy(there[name], signature)):
                self._send(here[name], name)
            self._copied[name] = signature
        for name in there.keys() - here.keys():
            self._system.delete_file(f"{self._base}/{name}")
            self._copied.pop(name, None)

    def _send(self, path: Path, name: str) -> None:
        folder, _, last = f"{self._base}/{name}".rpartition("/")
        # An object appears whole when its stream is closed; a file system shows it growing.
        whole = self._system.type_name in OBJECT_STORES
        written = f"{folder}/{last}" if whole else f"{folder}/.{last}.part"
        self._system.create_dir(folder, recursive=True)
        with path.open("rb") as source, self._system.open_output_stream(written) as stream:
            shutil.copyfileobj(source, stream)
        if not whole:
            self._system.move(written, f"{folder}/{last}")

    def _there(self) -> dict[str, Any]:
        """Name -> what the file system tells of it."""
        from pyarrow.fs import FileSelector, FileType

        found = self._system.get_file_info(FileSelector(self._base, recursive=True, allow_not_found=True))
        prefix = len(self._base.rstrip("/")) + 1
        files = {info.path[prefix:]: info for info in found if info.type == FileType.File}
        return {name: info for name, info in files.items() if not name.rpartition("/")[2].startswith(".")}


def storage_of(cluster: ClusterConfig, root: Path) -> Storage | None:
    """The copy of a run directory, below `cluster.storage` under the directory's own name."""
    if cluster.storage is None:
        return None
    return Storage(f"{cluster.storage.rstrip('/')}/{root.absolute().name}", root)


def _signature(path: Path) -> tuple[int, int]:
    """Bytes, and when it was written in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_copy(info: Any, signature: tuple[int, int]) -> bool:
    """Whether an earlier start copied the file: it has as many bytes, and was written later."""
    size, written = signature
    return bool(info.size == size and info.mtime_ns is not None and info.mtime_ns > written)


def _file_system(url: str) -> tuple[Any, str]:
    """pyarrow's file system for a URL and the path in it; fsspec's where pyarrow has none. Raises UserError."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        system, base = FileSystem.from_uri(url)
        return system, base
    except (OSError, ValueError) as first:
        try:
            import fsspec

            found, base = fsspec.core.url_to_fs(url)
        except (ImportError, OSError, ValueError) as second:
            raise UserError(
                f"cluster.storage = {url}: cannot be used ({first}; {second}); expected a URL such as "
                "s3://bucket/runs, gs://bucket/runs or file:///shared/runs"
            ) from None
        return PyFileSystem(FSSpecHandler(found)), base
