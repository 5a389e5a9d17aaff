"""Instruction difficulties and gamed rows from AlpacaEval's files, which a user downloads once.

`df_gamed.csv` (`index, preference, std_delta_len, instruction_difficulty, not_gamed_baseline, model`) has both, and the
`alpaca-eval` package fits with it alone; `instruction_difficulty.csv` (`index,instruction_difficulty`) has the former.
`index` is the place of the instruction in AlpacaEval's set.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from gpo.errors import UserError
from gpo.evaluation.length_control import FloatArray, GamedRows

GAMED_COLUMNS = ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")
DIFFICULTY = "instruction_difficulty"
BELONG = "difficulties belong to one fixed set, in the order of its instructions: leave the option out for others"


def read_difficulties(path: Path, rows: int) -> FloatArray:
    """Difficulty of each instruction; raises UserError naming the row, or where the file is not of as many."""
    table = _read(path, ("index", DIFFICULTY))
    # df_gamed.csv lists an instruction once a baseline; the first counts.
    found: dict[int, float] = {}
    for number, row in enumerate(table, start=2):
        found.setdefault(int(_number(path, number, row, "index")), _number(path, number, row, DIFFICULTY))
    missing = [place for place in range(rows) if place not in found]
    if missing:
        raise UserError(
            f"--difficulties {path}: {len(missing)} of {rows} rows have no difficulty (first: index {missing[0]}); "
            f"{BELONG}"
        )
    if len(found) != rows:
        raise UserError(f"--difficulties {path}: it has {len(found)} difficulties and there are {rows} rows; {BELONG}")
    return np.array([found[place] for place in range(rows)])


def read_gamed(path: Path) -> GamedRows:
    """All rows; raises UserError naming the row and the column, also for a preference outside [0, 1]."""
    table = _read(path, GAMED_COLUMNS)
    columns = {
        name: np.array([_number(path, number, row, name) for number, row in enumerate(table, start=2)])
        for name in GAMED_COLUMNS
    }
    preference_G = columns["preference"]
    outside = np.flatnonzero((preference_G < 0) | (preference_G > 1))
    if outside.size:
        raise UserError(
            f"{path}, line {outside[0] + 2}: preference is {preference_G[outside[0]]:g}, expected a chance in [0, 1], "
            "as df_gamed.csv has it (annotations have 1 more)"
        )
    return GamedRows(
        preference_G=preference_G,
        std_delta_len_G=columns["std_delta_len"],
        difficulty_G=columns[DIFFICULTY],
        not_gamed_G=columns["not_gamed_baseline"].astype(bool),
    )


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            names = list(reader.fieldnames or [])
            # pandas writes the index under an empty name.
            if names[:1] == [""] and "index" not in names:
                reader.fieldnames = ["index", *names[1:]]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected AlpacaEval's CSV file") from None
    lacking = [name for name in columns if name not in (reader.fieldnames or [])]
    if lacking or not rows:
        raise UserError(f"{path}: expected rows with the columns {', '.join(columns)}; found {', '.join(names)}")
    return rows


def _number(path: Path, row_number: int, row: dict[str, Any], column: str) -> float:
    text = row[column]
    if text in ("True", "False"):
        return float(text == "True")
    if text == "" and column == "preference":
        return float("nan")  # AlpacaEval leaves such a row out of the fit.
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{path}, line {row_number}: {column} is {text!r:.40}, expected a number")
    return value
