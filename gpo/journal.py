"""The run directory: what lies where, what is finished, and whether this config may go on with it.

A stage or shard is finished when its files are whole and its line is in `journal.jsonl`. Lines are only ever added.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from gpo.cluster.storage import Storage
from gpo.config import RunConfig, changed_identity, identity_hash, identity_values
from gpo.errors import UserError
from gpo.files import append_json_line, json_lines, remove_parts, write_json, write_text
from gpo.locking import hold
from gpo.settings import dump_yaml

FORMAT_VERSION = 1
Kind = type | tuple[type, ...]
FIELDS: dict[str, dict[str, Kind]] = {
    "begin": {"stage": str, "iteration": int},
    "stage": {"stage": str, "iteration": int, "seconds": (int, float), "left": (dict, type(None))},
    "shard": {"iteration": int, "shard": int},
    "poison": {"iteration": int, "prompt_id": str},
}
"""What readers of the journal lean on, by event."""
STATE: dict[str, Kind] = {"status": str, "config": dict, "data_sha256": dict}
"""What readers of run.json lean on."""


class RunDirectory:
    """Paths of a run and its journal. One process at a time holds it (`lock`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: IO[str] | None = None
        self.storage: Storage | None = None
        """Where the directory is copied to behind every stage."""

    def iteration(self, number: int) -> Path:
        """Folder of an iteration; 0 is the start."""
        return self.root / "iterations" / f"{number:03d}"

    def shard(self, iteration: int, index: int) -> Path:
        """Rollout file of a shard."""
        return self.iteration(iteration) / "rollouts" / f"shard-{index:05d}.parquet"

    def baseline(self, iteration: int, name: str, index: int) -> Path:
        """Answers to a shard's prompts by an older policy (named by its number), or of the data set (`answers`)."""
        return self.iteration(iteration) / "baseline" / name / f"shard-{index:05d}.parquet"

    def checkpoint(self, iteration: int) -> Path:
        """Published weights of an iteration."""
        return self.iteration(iteration) / "checkpoint"

    def training(self, iteration: int) -> Path:
        """Master weights, reference log-probabilities, step checkpoints."""
        return self.iteration(iteration) / "training"

    def floor(self, iteration: int) -> Path:
        """How far trainer and engine differ on the same weights; of iteration 0."""
        return self.iteration(iteration) / "canary.json"

    def canary(self, iteration: int) -> Path:
        """The trainer's own numbers for what it published."""
        return self.training(iteration) / "canary.json"

    def evaluation(self, iteration: int) -> Path:
        """Numbers of an iteration."""
        return self.iteration(iteration) / "evaluation.json"

    def heldout(self, iteration: int) -> Path:
        """Held-out answers of an iteration with what each judge made of them."""
        return self.iteration(iteration) / "heldout.json"

    @property
    def metrics(self) -> Path:
        """A line a logged training step."""
        return self.root / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """What the processes print."""
        return self.root / "logs"

    def record(self, event: str, **values: Any) -> None:
        """Add a line to the journal; it is on disk when this returns."""
        line = {"format_version": FORMAT_VERSION, "time": time.time(), "event": event, **values}
        append_json_line(self.root / "journal.jsonl", line)

    def journal(self) -> list[dict[str, Any]]:
        """All lines so far, as `journal_lines` reads them."""
        return list(self.journal_lines())

    def journal_lines(self) -> Iterator[dict[str, Any]]:
        """One line at a time, because a run asks for few of them and often.

        Raises UserError for a whole line that no run writes.
        """
        path = self.root / "journal.jsonl"
        for line in json_lines(path):
            _check_line(path, line)
            yield line

    def began(self) -> str:
        """When the run was begun, which tells it from others that lay in the same place."""
        return repr((_read_state(self.root / "run.json") or {}).get("started"))

    def finished(self, stage: str, iteration: int) -> dict[str, Any] | None:
        """The journal's line of a finished stage; others are not held: this is asked before every stage."""
        wanted = {"event": "stage", "stage": stage, "iteration": iteration}
        return next((line for line in self.journal_lines() if wanted.items() <= line.items()), None)

    def stages(self) -> dict[tuple[str, int], dict[str, Any]]:
        """(stage, iteration) -> the journal's line of it, of all that are finished, in order."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for line in self.journal_lines():
            if line["event"] == "stage":
                found.setdefault((line["stage"], line["iteration"]), line)
        return found

    def copy_away(self) -> None:
        """Bring the copy up to date, where there is one."""
        if self.storage is not None:
            self.storage.save()

    def lock(self) -> None:
        """Hold the directory against a second driver; raises UserError when one is at work."""
        try:
            self._lock = hold(self.root / ".lock")
        except OSError as error:
            raise UserError(f"{self.root}: cannot be a run directory ({error.strerror}); use --run-dir") from None
        if self._lock is None:
            raise UserError(f"{self.root}: another gpo run is at work in it; wait for it or use --run-dir")


def open_run(
    root: Path, config: RunConfig, *, fresh: bool, versions: dict[str, str], data: dict[str, str]
) -> RunDirectory:
    """Start a run directory or go on with it.

    `versions` are package versions, `data` the content hashes of the files the run reads.
    Raises UserError when the directory holds another run: identity keys or data differ.
    """
    directory = RunDirectory(root)
    directory.lock()
    if fresh:
        _clear(root)
    if not goes_on(root, config, data):
        write_text(root / "config.yaml", dump_yaml(config))
        write_json(root / "run.json", _new_state(config, versions, data))
        directory.record("start", placement=_placement(config))
        return directory
    remove_parts(root)
    directory.record("restart", placement=_placement(config), versions=versions)
    write_text(root / "config.yaml", dump_yaml(config))
    return directory


def goes_on(root: Path, config: RunConfig, data: dict[str, str]) -> bool:
    """Whether the directory holds this very run; False: none. Reads only.

    Raises UserError when it holds another run, or is damaged.
    """
    state = _read_state(root / "run.json")
    if state is not None:
        _check_identity(root, state, config, data)
    elif (root / "journal.jsonl").exists():
        raise UserError(f"{root}/run.json: missing, but there is a journal; use --fresh or another --run-dir")
    return state is not None


OWN = ("run.json", "journal.jsonl", "iterations")


def _clear(root: Path) -> None:
    """Delete what is in a run directory; raises UserError when it does not look like one.

    run.json goes last: as long as anything of the run is there, it says whose that is.
    """
    children = [child for child in root.iterdir() if child.name != ".lock"]
    if children and not any((root / name).exists() for name in OWN):
        raise UserError(
            f"{root}: --fresh would delete what is in it, but it holds no run; leave --fresh out or change --run-dir"
        )
    for child in sorted(children, key=lambda child: (child.name == "run.json", child.name != "journal.jsonl")):
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _read_state(path: Path) -> dict[str, Any] | None:
    return _state_in(path.read_text(encoding="utf-8", errors="replace"), path) if path.is_file() else None


def _state_in(text: str, path: Path) -> dict[str, Any]:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON; restore it, or use --fresh or another --run-dir") from None
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: expected format_version {FORMAT_VERSION}; use --fresh or another --run-dir")
    for name, kind in STATE.items():
        if not isinstance(state.get(name), kind):
            raise UserError(
                f"{path}: damaged at {name} ({state.get(name)!r:.40}); restore it, or use --fresh or another --run-dir"
            )
    return state


def _new_state(config: RunConfig, versions: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "status": "running",
        "seed": config.seed,
        "identity": identity_hash(config),
        "config": identity_values(config),
        "data_sha256": data,
        "versions": versions,
        "started": time.time(),
    }


def set_status(directory: RunDirectory, status: str) -> None:
    """`running`, `finished`, `failed` or `interrupted` in run.json."""
    path = directory.root / "run.json"
    state = _read_state(path)
    if state is None:
        raise FileNotFoundError(path)
    write_json(path, {**state, "status": status, "updated": time.time(), "pid": os.getpid()})


def _placement(config: RunConfig) -> dict[str, Any]:
    return {"cluster": config.cluster.model_dump(mode="json"), "workers": config.train.workers}


def _check_identity(root: Path, state: dict[str, Any], config: RunConfig, data: dict[str, str]) -> None:
    changes = changed_identity(state["config"], identity_values(config))
    changes += [f"content of {line}" for line in changed_identity(state["data_sha256"], data)]
    if changes:
        listed = "\n".join(f"  - {change}" for change in changes)
        raise UserError(
            f"{root}: holds a run with other settings, by its run.json:\n{listed}\n"
            "Put them back to go on with it, use --run-dir for a second run, or --fresh to throw the first one away."
        )


def is_finished(root: Path) -> bool:
    """Whether a run directory holds a run that ended well; raises UserError when its run.json is damaged."""
    state = _read_state(root / "run.json")
    return state is not None and state["status"] == "finished"


def dtype_of_run(root: Path, storage: Storage | None) -> str | None:
    """The type that the run of a directory, or of its copy where the directory is empty, computes in; None: no run.

    Raises UserError when its run.json is damaged.
    """
    state = _read_state(root / "run.json")
    if state is None and storage is not None:
        text = storage.state()
        state = None if text is None else _state_in(text, root / "run.json")
    policy = {} if state is None else state["config"].get("policy")
    dtype = policy.get("dtype") if isinstance(policy, dict) else None
    return dtype if dtype in ("bfloat16", "float16", "float32") else None


def read_config_of(root: Path) -> dict[str, Any]:
    """The resolved config of a run directory as plain values; raises UserError when there is none."""
    try:
        values = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{root}: no readable config.yaml ({error}); expected a run directory") from None
    if not isinstance(values, dict):
        raise UserError(f"{root}/config.yaml: expected a mapping")
    return values


def _check_line(path: Path, line: dict[str, Any]) -> None:
    """A line that is cut is none (`read_json_lines`); one that is whole and lacks a field was changed by somebody."""
    always: dict[str, Kind] = {"time": (int, float), "event": str}
    expected = always | FIELDS.get(str(line.get("event")), {})
    for name, kind in expected.items():
        if not isinstance(line.get(name), kind):
            raise UserError(
                f"{path}: damaged at {json.dumps(line):.120} ({name} is {line.get(name)!r:.40}); put a copy of the "
                "file in its place, or take the line out: what it tells of is done again"
            )
