"""The closing table of a run, and samples before and after, as plain text. Reads the run directory only."""

from pathlib import Path
from typing import Any

from gpo.files import read_json
from gpo.journal import RunDirectory
from gpo.printable import printable

STAGES = ("generate", "train", "publish", "evaluate")
SHOWN_CHARACTERS = 280


def closing_table(directory: RunDirectory) -> str:
    """A row an iteration: win rates against the start with intervals, length, KL, seconds a stage."""
    lines = directory.journal()
    numbers = sorted(
        line["iteration"] for line in lines if line.get("event") == "stage" and line.get("stage") == "evaluate"
    )
    evaluations = [read_json(directory.evaluation(number)) for number in numbers]
    if not evaluations:
        return "no iteration is finished yet"
    judges = list(evaluations[0]["judges"])
    header = [
        "iteration",
        *(f"{printable(judge)} win rate vs start" for judge in judges),
        "tokens",
        "ended",
        "KL (nats)",
    ]
    header += [f"{stage} s" for stage in STAGES]
    rows = [
        [
            str(evaluation["iteration"]),
            *(_rate(evaluation["judges"][judge]["vs_start"]) for judge in judges),
            f"{evaluation['length_tokens']:.1f}",
            f"{evaluation['ended_share']:.0%}",
            f"{evaluation['kl_nats_per_answer']:.2f}",
            *(_seconds(lines, stage, evaluation["iteration"]) for stage in STAGES),
        ]
        for evaluation in evaluations
    ]
    return _columns([header, *rows])


def _rate(entry: dict[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{entry['win_rate']:.1%} [{low:.1%}, {high:.1%}]"


def _seconds(lines: list[dict[str, Any]], stage: str, iteration: int) -> str:
    for line in lines:
        if (line.get("event"), line.get("stage"), line.get("iteration")) == ("stage", stage, iteration):
            return f"{line['seconds']:.0f}"
    return "-"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def samples_before_and_after(directory: RunDirectory, iteration: int, count: int = 3) -> str:
    """First answers to the first held-out prompts, by the start and by an iteration."""
    before = _answers(directory.heldout(0))[:count]
    after = _answers(directory.heldout(iteration))[:count]
    blocks = []
    for old, new in zip(before, after, strict=True):
        question = printable(old["prompt"][-1]["content"])
        blocks.append(
            f"Prompt: {question}\n  before: {_shown(old)}\n  after:  {_shown(new)}"
        )  # fmt: skip
    return "\n".join(blocks)


def _answers(path: Path) -> list[dict[str, Any]]:
    prompts: list[dict[str, Any]] = read_json(path)["prompts"]
    return prompts


def _shown(prompt: dict[str, Any]) -> str:
    text = printable(prompt["completion"][0])
    cut = "" if prompt["finish_reason"][0] == "stop" else " [cut at the token limit]"
    return (text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...") + cut
