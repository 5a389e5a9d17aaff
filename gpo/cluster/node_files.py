"""Files for nodes that do not share the driver's disk: they travel through Ray's object store, under the same path.

What a process reads is delivered before it needs it; what it wrote is collected behind it. On nodes that see the
driver's disk only what they lack beside the run directory is copied. A file is whole under its name or not there, and
a copy has the time of its original, so that the newest is the one that was written last. What another run left under
the same path on such a node, one that was thrown away by `--fresh` perhaps, is deleted when the node is first met.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpo.errors import StageError, reason_of

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20
TASK_SECONDS = 60.0
COPY_SECONDS = 1800.0
MARKER_LAST = "gpo_weights.json"
"""Says that a directory of weights is whole, so it goes behind the rest."""
OWNER = ".started"
"""In a run directory on each disk: which run its files are of."""


class NodeFiles:
    """Which nodes have a disk of their own, and what was brought to them."""

    def __init__(self, root: Path, shared: str, owner: str) -> None:
        """Look which nodes see the run directory `root`; `shared` is cluster.shared_disk, `owner` tells this run from
        others that lay in the same place.
        """
        self._root = root.absolute()
        self._shared = shared
        self._owner = owner
        self._sees: dict[str, bool] = {}
        self._looked: dict[tuple[str, Path], bool] = {}
        self._brought: set[tuple[str, Path, tuple[Any, ...]]] = set()
        self._standing: list[Path] = []
        self._stage: list[Path] = []

    def keep(self, *paths: Path) -> None:
        """Every node is to have these from now on, nodes that join later as well."""
        self._standing += [path.absolute() for path in paths]

    def begin_stage(self) -> None:
        """What was delivered for the stage before is asked for no longer."""
        self._stage = []

    def deliver(self, *paths: Path) -> None:
        """Bring files and directories, and those that every node is to have, to all nodes with a disk of their own.

        A node that joined behind an earlier call of this stage gets what that call brought.
        """
        apart = self._apart()
        wanted = [path.absolute() for path in paths]
        earlier = [path for path in self._stage if path not in wanted]
        for path in dict.fromkeys([*self._standing, *wanted]):
            nodes = [*apart, *self._lacking(path, apart)]
            signature = _signature(path) if nodes else ()
            self._bring(path, signature, [node for node in nodes if (node, path, signature) not in self._brought])
        for path in earlier:
            # Never again to a node that had it: a process there may have written to it meanwhile.
            had = {node for node, brought, _ in self._brought if brought == path}
            new = [node for node in apart if node not in had]
            self._bring(path, _signature(path) if new else (), new)
        self._stage = [*earlier, *wanted]

    def _bring(self, path: Path, signature: tuple[Any, ...], nodes: list[str]) -> None:
        if nodes and signature:
            _send(path, nodes)
            self._brought |= {(node, path, signature) for node in nodes}

    def _lacking(self, path: Path, apart: list[str]) -> list[str]:
        """Nodes that see the run directory but not this path, which every node is to have."""
        if path not in self._standing or self._shared != "auto" or path.is_relative_to(self._root):
            return []
        nodes = [node for node in self._others() if node not in apart]
        new = [node for node in nodes if (node, path) not in self._looked]
        if new:
            self._looked |= {(node, path): written > 0 for node, written in _ask(new, _written, str(path)).items()}
        return [node for node in nodes if not self._looked.get((node, path), True)]

    def collect(self, *paths: Path, beside: Path | None = None) -> bool:
        """Fetch files and directories that a process wrote on a node with a disk of its own; whether there were any.

        `beside`: only from the node that wrote this file last, and nothing when that is the driver's.
        """
        nodes = self._apart()
        if beside is not None:
            written = _ask(nodes, _written, str(beside.absolute()))
            newest = max(written, key=lambda node: written[node], default="")
            nodes = [newest] if written.get(newest, 0) > _written(str(beside.absolute())) else []
        found = {path.absolute(): _ask(nodes, _written, str(path.absolute())) for path in paths}
        holders = {path: max(written, key=lambda node: written[node]) for path, written in found.items() if written}
        # Of the files beside one that was written last all are wanted, whatever their own times.
        least = {path: 0 if beside else _written(str(path)) for path in holders}
        fetched = [path for path, node in holders.items() if found[path][node] > least[path]]
        for path in fetched:
            _fetch(path, holders[path])
        return bool(fetched)

    def _apart(self) -> list[str]:
        """Node ids of those that do not see the driver's disk."""
        if self._shared == "yes":
            return []
        nodes = self._others()
        new = [node for node in nodes if node not in self._sees]
        if new and self._shared == "no":
            self._sees |= dict.fromkeys(new, False)
        elif new:
            self._look(new)
        if apart := [node for node in new if not self._sees.get(node, True)]:
            # Here first: where the disk is shared in spite of what was said, the mark is this run's.
            _mark(self._root, self._owner)
            _ask(apart, _take_over, str(self._root), self._owner)
        return [node for node in nodes if not self._sees.get(node, True)]

    def _others(self) -> list[str]:
        """Node ids of those that are alive, but the driver's."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]

    def _look(self, nodes: list[str]) -> None:
        probe = self._root / f".seen-{uuid.uuid4().hex}"
        self._root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        try:
            self._sees |= {node: written > 0 for node, written in _ask(nodes, _written, str(probe)).items()}
        finally:
            probe.unlink()
        apart = sum(not self._sees.get(node, True) for node in nodes)
        if apart:
            logger.info("%d nodes do not see %s; files go there through Ray's object store", apart, self._root)


def _ask(nodes: list[str], work: Any, *arguments: Any) -> dict[str, Any]:
    """What a plain function returns on each node, all at once; a node that dies meanwhile is left out.

    Raises StageError at the deadline.
    """
    references = {node: _task(node, work).remote(*arguments) for node in nodes}
    return {node: found for node, reference in references.items() if (found := _answer(node, reference)) is not None}


def _answer(node: str, reference: Any) -> Any:
    """What a task on a node returned; None when the node died."""
    import ray

    try:
        return ray.get(reference, timeout=TASK_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise StageError(
            f"node {node} does not answer within {TASK_SECONDS:.0f} s; start the same command again"
        ) from None
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        logger.warning("node %s was lost while files were brought there or back (%s)", node, reason_of(error))
        return None


def _task(node: str, work: Any, **options: Any) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(work).options(num_cpus=0, scheduling_strategy=there, max_retries=0, **options)


def _files(path: Path) -> list[Path]:
    """A file, or all files of a directory, the marker of weights last."""
    found = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sorted(found, key=lambda one: (one.name == MARKER_LAST, one))


def _signature(path: Path) -> tuple[Any, ...]:
    return tuple((str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in _files(path))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield stream.read(CHUNK_BYTES)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _send(path: Path, nodes: list[str]) -> None:
    """A chunk is put into the object store once, whatever the number of nodes."""
    import ray

    for file in _files(path):
        references = [ray.put(chunk) for chunk in _chunks(file)]
        written = file.stat().st_mtime_ns
        copies = {node: _task(node, _write).remote(str(file), references, written) for node in nodes}
        ready, late = ray.wait(list(copies.values()), num_returns=len(copies), timeout=COPY_SECONDS)
        if late:
            raise StageError(f"{file}: not on every node within {COPY_SECONDS:.0f} s; start the same command again")
        for node, copy in copies.items():
            _answer(node, copy)


def _write(path: str, references: list[Any], written: int) -> bool:
    """On the node: the file whole, or not at all, with the time (ns) at which its original was written."""
    import ray

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part-{os.uname().nodename}-{os.getpid()}")
    with part.open("wb") as stream:
        for reference in references:
            stream.write(ray.get(reference))
        stream.flush()
        os.fsync(stream.fileno())
    os.utime(part, ns=(written, written))
    part.rename(target)
    return True


def _written(path: str) -> int:
    """On the node: when a file was written, in ns; 0 where there is none."""
    return Path(path).stat().st_mtime_ns if Path(path).exists() else 0


def _mark(root: Path, owner: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / OWNER).write_text(owner, encoding="utf-8")


def _take_over(root: str, owner: str) -> bool:
    """On the node: delete what another run left in the run directory, by its mark, and set this one's; whether so."""
    directory = Path(root)
    mark = directory / OWNER
    others = mark.is_file() and mark.read_text(encoding="utf-8") != owner
    if others:
        if (directory / "iterations").exists():
            shutil.rmtree(directory / "iterations")
        (directory / "metrics.jsonl").unlink(missing_ok=True)
    _mark(directory, owner)
    return others


def _read(path: str) -> Iterator[tuple[str, bytes, int]]:
    """On the node: (path, chunk, time of writing in ns) of every file; a path with each chunk, in order."""
    for file in _files(Path(path)):
        written = file.stat().st_mtime_ns
        for chunk in _chunks(file):
            yield str(file), chunk, written


def _stream(references: Any, node: str) -> Iterator[Any]:
    """What a generator on a node yields; raises StageError when the next is not there in time."""
    import ray

    while True:
        ready, _ = ray.wait([references], timeout=COPY_SECONDS, fetch_local=False)
        if not ready:
            raise StageError(f"node {node} sends nothing for {COPY_SECONDS:.0f} s; start the same command again")
        try:
            yield next(references)
        except StopIteration:
            return


def _fetch(path: Path, node: str) -> None:
    """Bring what is under a path on a node here; raises StageError when the node does not give it."""
    import ray

    parts: dict[Path, tuple[Path, int]] = {}
    try:
        for reference in _stream(_task(node, _read, num_returns="streaming").remote(str(path)), node):
            name, chunk, written = ray.get(reference, timeout=COPY_SECONDS)
            target = Path(name)
            part = target.with_name(f".{target.name}.part-{os.uname().nodename}-{os.getpid()}")
            if target not in parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                part.unlink(missing_ok=True)
                parts[target] = part, written
            with part.open("ab") as stream:
                stream.write(chunk)
    except ray.exceptions.RayError as error:
        raise StageError(
            f"{path} could not be brought from node {node} ({reason_of(error)}); start the same command again"
        ) from None
    for target, (part, written) in parts.items():
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        os.utime(part, ns=(written, written))
        part.rename(target)
