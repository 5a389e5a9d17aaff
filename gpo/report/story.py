"""The numbers of a run, read from its directory alone: what the page and the terminal both tell.

Everything is plain values, ready for JSON. A run that is still at work has what is finished so far.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gpo.errors import UserError
from gpo.files import read_json_lines
from gpo.journal import RunDirectory
from gpo.report.distributions import correlation_within, histogram, shared_edges
from gpo.report.forms import Evaluation, RunState, read_form
from gpo.report.samples import iterations_on_disk, read_table, shard_files, token_counts

MOST_STEPS = 2000
"""Training steps that are drawn; of a longer run every n-th."""


def open_for_reading(root: Path) -> RunDirectory:
    """A run directory to look at, also while a run is at work in it; raises UserError when it is none."""
    if not (root / "run.json").is_file():
        raise UserError(f"{root}: no run.json in it; expected a run directory, such as runs/NAME after `gpo run`")
    return RunDirectory(root)


def tell(directory: RunDirectory) -> dict[str, Any]:
    """All numbers: `run`, `evaluations`, `rollouts`, `stages`, `steps`, `tournaments`."""
    evaluations = read_evaluations(directory)
    return {
        "run": _run(directory),
        "evaluations": evaluations,
        "rollouts": _rollouts(directory),
        "stages": _stages(directory),
        "steps": _steps(directory),
        "tournaments": tournaments(evaluations),
    }


def _run(directory: RunDirectory) -> dict[str, Any]:
    state = read_form(directory.root / "run.json", RunState)
    config = directory.root / "config.yaml"
    kept = ("name", "status", "seed", "started", "updated", "versions")
    settings = state.get("config", {})
    return {name: state.get(name) for name in kept} | {
        "iterations": settings.get("iterations"),
        "trained_on": settings.get("preference", {}).get("train_on"),
        "trained_part": trained_part(settings.get("train", {})),
        "config": config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    }


def trained_part(train: dict[str, Any]) -> str:
    """What training takes of the sampled answers whose scores and targets are shown, in sentences."""
    select, nats, ends = train.get("select", "all"), train.get("standardise"), train.get("select_n", 1)
    part = {
        "best-and-worst": "of each prompt only the best and the worst answer",
        "top-and-bottom": f"of each prompt only the {ends} best and the {ends} worst answers",
    }.get(select, "all of these answers")
    said = f"Training takes {part} (train.select: {select}), without those left out."
    if nats is not None:
        said += (
            f" It scales their targets to a root mean square of {nats:g} nats (train.standardise: {nats:g}); shown is"
        )
        said += " what they were before."
    return said


def read_evaluations(directory: RunDirectory) -> list[dict[str, Any]]:
    """evaluation.json of each finished iteration, in order; one without a journal line is still being made."""
    numbers = sorted(
        line["iteration"]
        for line in directory.journal()
        if line.get("event") == "stage" and line.get("stage") == "evaluate"
    )
    return [read_form(directory.evaluation(number), Evaluation) for number in numbers]


def _rollouts(directory: RunDirectory) -> dict[str, Any]:
    """Distributions of score, target and length of all training answers, by iteration, on shared edges."""
    columns = {number: _answers(directory, number) for number in iterations_on_disk(directory)}
    columns = {number: answers for number, answers in columns.items() if len(answers["length"])}
    edges = {name: shared_edges([answers[name] for answers in columns.values()]) for name in ("score", "target")}
    rows = []
    for number, answers in columns.items():
        rows.append(
            {
                "iteration": number,
                "prompts": int(answers["prompt"].max() + 1),
                "answers": len(answers["length"]),
                "length_tokens": float(answers["length"].mean()),
                "cut_share": float(answers["cut"].mean()),
                "twin_share": float(answers["twin"].mean()),
                "length_score_correlation": correlation_within(answers["prompt"], answers["length"], answers["score"]),
                "score": histogram(answers["score"], edges["score"]),
                "target": histogram(answers["target"], edges["target"]),
            }
        )
    return {"edges": {name: values.tolist() for name, values in edges.items()}, "iterations": rows}


def _answers(directory: RunDirectory, iteration: int) -> dict[str, Any]:
    """Columns over all answers of an iteration: prompt number, length, score, cut, word for word a twin.

    `target` is over those that were not left out of training.
    """
    names = ["completion", "completion_ids", "finish_reason", "score", "target", "left_out"]
    found: dict[str, list[Any]] = {name: [] for name in ("prompt", "length", "score", "target", "cut", "twin")}
    prompts = 0
    for path in shard_files(directory, iteration):
        table = read_table(path, names)
        for counts in token_counts(table):
            found["length"] += counts
            found["prompt"] += [prompts] * len(counts)
            prompts += 1
        for texts in table["completion"].to_pylist():
            found["twin"] += [texts.count(text) > 1 for text in texts]
        score, target, left_out = (_flat(table[name]) for name in ("score", "target", "left_out"))
        found["score"] += score
        # Nobody trains on an answer that is left out, so its target is none.
        found["target"] += [value for value, why in zip(target, left_out, strict=True) if not why]
        found["cut"] += [reason != "stop" for reason in _flat(table["finish_reason"])]
    kinds: dict[str, Any] = {"prompt": np.int64}
    return {name: np.array(values, dtype=kinds.get(name, np.float64)) for name, values in found.items()}


def _flat(column: Any) -> list[Any]:
    found: list[Any] = column.combine_chunks().flatten().to_pylist()
    return found


def _stages(directory: RunDirectory) -> list[dict[str, Any]]:
    """Each stage that ended, with the moment it began (seconds since the first line), and the one still open."""
    lines = directory.journal()
    if not lines:
        return []
    zero = lines[0]["time"]
    stages = [
        {
            "stage": line["stage"],
            "iteration": line["iteration"],
            "begin": line["time"] - line.get("seconds", 0.0) - zero,
            "seconds": line.get("seconds", 0.0),
            "open": False,
        }
        for line in lines
        if line.get("event") == "stage"
    ]
    begun = [line for line in lines if line.get("event") == "begin"]
    if begun and not any((s["stage"], s["iteration"]) == (begun[-1]["stage"], begun[-1]["iteration"]) for s in stages):
        last = begun[-1]
        seconds = lines[-1]["time"] - last["time"]
        stages.append(
            {
                "stage": last["stage"],
                "iteration": last["iteration"],
                "begin": last["time"] - zero,
                "seconds": seconds,
                "open": True,
            }
        )
    return stages


def _steps(directory: RunDirectory) -> list[dict[str, Any]]:
    """Logged training steps, numbered over the whole run; a step that a restart logged twice counts once."""
    logged = [line for line in read_json_lines(directory.metrics) if _is_step(line)]
    newest = {(line["iteration"], line["step"]): line for line in logged}
    kept = ("iteration", "step", "loss", "grad_norm", "learning_rate")
    lines = [newest[key] for key in sorted(newest)]
    every = -(-len(lines) // MOST_STEPS) or 1
    return [
        {"total": total} | {name: line[name] for name in kept if name in line}
        for total, line in enumerate(lines, start=1)
        if total % every == 0
    ]


def _is_step(line: dict[str, Any]) -> bool:
    """A damaged line is none."""
    return isinstance(line.get("iteration"), int) and isinstance(line.get("step"), int)


def tournaments(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each judge all checkpoints against all: `names` and `rate[i][j]`, None where nobody compared the two."""
    if not evaluations:
        return []
    numbers = [0, *(evaluation["iteration"] for evaluation in evaluations)]
    found = []
    for judge in evaluations[0]["judges"]:
        rates: dict[tuple[int, int], float] = {(number, number): 0.5 for number in numbers}
        for evaluation in evaluations:
            verdict = evaluation["judges"].get(judge)
            if verdict is None:
                continue
            others = {0: verdict["vs_start"], **{int(name): rate for name, rate in verdict["vs"].items()}}
            for other, rate in others.items():
                rates[evaluation["iteration"], other] = rate["win_rate"]
                rates[other, evaluation["iteration"]] = 1 - rate["win_rate"]
        names = ["start" if number == 0 else f"iteration {number}" for number in numbers]
        found.append({"judge": judge, "names": names, "rate": [[rates.get((a, b)) for b in numbers] for a in numbers]})
    return found
