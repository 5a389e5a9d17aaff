"""Copies of a run's numbers and samples in tensorboard, wandb and trackio, through accelerate's tracker classes.

The run's own files are the truth: a thread in the driver reads what they have grown by and hands it on, and what a
tracker has been given stands in `RUN/trackers/copied.json`, so that a run that goes on copies nothing twice. A tracker
that fails is named in the log and left alone; the run does not depend on it.
"""

import hashlib
import importlib.util
import json
import logging
import os
import threading
from collections.abc import Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.files import read_json_lines, write_json
from gpo.journal import RunDirectory

logger = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
END_SECONDS = 60.0
"""How long the end of a run waits for the thread."""
SAMPLE_PROMPTS = 8
COLUMNS = ["iteration", "prompt", "start", "now", "finish", "tokens"]


def check_installed(names: Sequence[str], field: str) -> None:
    """Raises UserError naming the trackers that are not installed, and the field of the config that wants them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{field}: {', '.join(missing)} not installed; `pip install {' '.join(missing)}` or "
            "`pip install 'gpo-align[trackers]'`, or leave it out"
        )


class Trackers:
    """A context in which the trackers of a run follow its files."""

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self._config = config
        self._directory = directory
        self._folder = directory.root / "trackers"
        self._open: dict[str, Any] = {}
        self._copied: dict[str, dict[str, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="trackers", daemon=True)

    def __enter__(self) -> "Trackers":
        if self._config.tracking.report_to:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                logger.warning(
                    "trackers: still busy after %.0f s; their last numbers are in metrics.jsonl", END_SECONDS
                )

    def _follow(self) -> None:
        try:
            self._follow_files()
        except Exception as error:  # as on a full disk; what the run itself makes of that is told by the run
            logger.warning("trackers: %s: %s; they get no more numbers of this start", type(error).__name__, error)
            logging.getLogger("traceback").error("trackers", exc_info=True)

    def _follow_files(self) -> None:
        for name in self._config.tracking.report_to:
            self._each(name, self._start)
        path = self._folder / "copied.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._copied = {name: known.get(name, {"steps": 0, "evaluation": 0}) for name in self._open}
        over = False
        while self._open and not over:
            over = self._over.wait(EVERY_SECONDS)
            for opened in list(self._open):
                self._each(opened, self._copy)
            write_json(path, {**known, **self._copied})
        for opened in list(self._open):
            self._each(opened, lambda name: self._open[name].finish())

    def _each(self, name: str, work: Any) -> None:
        """Do it for one tracker; what a tracker raises ends that tracker only."""
        try:
            work(name)
        except Exception as error:  # of other people's services; the run's files have it all
            self._open.pop(name, None)
            logger.warning(
                "tracker %s: %s: %s; it gets no more numbers of this start", name, type(error).__name__, error
            )
            logging.getLogger("traceback").error("tracker %s", name, exc_info=True)

    def _start(self, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        tracker = make_tracker(name, self._config, self._directory.root, self._folder)
        tracker.start()
        self._open[name] = tracker

    def _copy(self, name: str) -> None:
        # Steps are read before the journal: what is evaluated by then has all its steps among them.
        steps = numbered_steps(read_json_lines(self._directory.metrics))
        evaluations = finished_evaluations(self._directory, self._copied[name]["evaluation"])
        for step, line, evaluation in in_order(steps, evaluations):
            if evaluation is None:
                self._copy_step(name, step, line)
            else:
                self._copy_evaluation(name, step, evaluation)

    def _copy_step(self, name: str, step: int, line: dict[str, Any]) -> None:
        if step > self._copied[name]["steps"]:
            numbers = {f"train/{key}": value for key, value in line.items() if key not in ("step", "steps")}
            self._open[name].log(numbers, step=step)
            self._copied[name]["steps"] = step

    def _copy_evaluation(self, name: str, step: int, evaluation: dict[str, Any]) -> None:
        self._open[name].log(evaluation_numbers(evaluation), step=step)
        log_samples(name, self._open[name], sample_rows(self._directory, evaluation["iteration"]), step)
        self._copied[name]["evaluation"] = evaluation["iteration"]


def make_tracker(name: str, config: RunConfig, root: Path, folder: Path) -> Any:
    """One of accelerate's trackers, not yet started; a run that goes on goes on in the same run of the tracker."""
    from accelerate import PartialState, tracking

    PartialState(cpu=True)
    project = config.tracking.project
    if name == "tensorboard":
        return tracking.TensorBoardTracker("tensorboard", folder)
    if name == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")
        identity = hashlib.sha256(f"{root.absolute()}/{_started(root)}".encode()).hexdigest()[:16]
        return tracking.WandBTracker(project, name=config.name, id=identity, resume="allow", dir=str(folder))
    return tracking.TrackioTracker(project, name=f"{config.name}-{int(_started(root))}", resume="allow", embed=False)


def _started(root: Path) -> float:
    return float(json.loads((root / "run.json").read_text(encoding="utf-8"))["started"])


def numbered_steps(lines: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Steps counted over the whole run; of a step that a restart logged twice, the newest."""
    newest = {(line["iteration"], line["step"]): line for line in lines}
    before: dict[int, int] = {}
    total = 0
    for iteration in sorted({iteration for iteration, _ in newest}):
        before[iteration] = total
        total += max(line["steps"] for key, line in newest.items() if key[0] == iteration)
    return [(before[key[0]] + key[1], newest[key]) for key in sorted(newest)]


def in_order(
    steps: list[tuple[int, dict[str, Any]]], evaluations: list[dict[str, Any]]
) -> list[tuple[int, dict[str, Any], dict[str, Any] | None]]:
    """(step, line, None) of each training step and (step, {}, evaluation), behind the last one of its iteration.

    Steps never fall, since wandb takes none that lies behind; several evaluations that are found at once do not fall
    onto one step either, where it would keep the last.
    """
    found: list[tuple[int, dict[str, Any], dict[str, Any] | None]] = [(total, line, None) for total, line in steps]
    for evaluation in evaluations:
        before = [total for total, line in steps if line["iteration"] <= evaluation["iteration"]]
        found.append((max(before, default=1), {}, evaluation))
    return sorted(found, key=lambda one: (one[0], one[2] is not None))


def finished_evaluations(directory: RunDirectory, behind: int) -> list[dict[str, Any]]:
    """evaluation.json of each iteration behind this one whose evaluation is in the journal."""
    finished = [iteration for stage, iteration in directory.stages() if stage == "evaluate" and iteration > behind]
    return [json.loads(directory.evaluation(iteration).read_text(encoding="utf-8")) for iteration in finished]


def evaluation_numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation under names that trackers group by."""
    names = ("iteration", "length_tokens", "ended_share", "kl_nats_per_answer", "cyclic_share")
    numbers = {f"evaluation/{name}": evaluation[name] for name in names if evaluation.get(name) is not None}
    for judge, verdict in evaluation["judges"].items():
        numbers[f"evaluation/{judge}/win_rate_vs_start"] = verdict["vs_start"]["win_rate"]
        low, high = verdict["vs_start"]["ci95"]
        numbers |= {f"evaluation/{judge}/ci95_low": low, f"evaluation/{judge}/ci95_high": high}
    return numbers


def sample_rows(directory: RunDirectory, iteration: int) -> list[list[Any]]:
    """First answers to the first held-out prompts, by the start and by an iteration: rows of `COLUMNS`."""
    files = [directory.heldout(number) for number in (0, iteration)]
    before, now = (json.loads(path.read_text(encoding="utf-8"))["prompts"][:SAMPLE_PROMPTS] for path in files)
    return [
        [
            iteration,
            new["prompt"][-1]["content"],
            old["completion"][0],
            new["completion"][0],
            new["finish_reason"][0],
            len(new["completion_ids"][0]),
        ]
        for old, new in zip(before, now, strict=True)
    ]


def log_samples(name: str, tracker: Any, rows: list[list[Any]], step: int) -> None:
    """A table of samples in a tracker's own way."""
    if name == "wandb":
        tracker.log_table("samples", columns=COLUMNS, data=rows, step=step)
    elif name == "trackio":
        import pandas
        import trackio

        tracker.log({"samples": trackio.Table(dataframe=pandas.DataFrame(rows, columns=COLUMNS))}, step=step)
    else:
        tracker.log({"samples": markdown_table(rows)}, step=step)


def markdown_table(rows: list[list[Any]]) -> str:
    """Rows of `COLUMNS` as tensorboard's text plugin reads them; nothing in a cell is markup."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = escape(" ".join(str(value).split()))
    return "".join(f"&#{ord(c)};" if c in "|`*_[]\\~#" else c for c in text.replace("#", "\0")).replace("\0", "&#35;")
