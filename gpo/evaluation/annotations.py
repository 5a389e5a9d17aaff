"""The files of an evaluation: `annotations.json` and `leaderboard.csv` in AlpacaEval's fields, `metrics.json` in ours.

AlpacaEval's units: `preference` from 1 (the baseline's answer, output_1) to 2 (the model's, output_2), rates in per
cent. `metrics.json` has rates in [0, 1].
"""

import csv
import io
from pathlib import Path
from typing import Any

from gpo.evaluation.judges import Verdict
from gpo.evaluation.length_control import LengthControl
from gpo.evaluation.outputs import OutputFile
from gpo.evaluation.pair_numbers import PairNumbers
from gpo.files import write_text

MODE = "community"
"""AlpacaEval's word for a row that its authors did not check."""


def annotation_rows(
    baseline: OutputFile,
    outputs: OutputFile,
    pairs: list[tuple[int, int]],
    verdicts: list[Verdict],
    annotator: str,
) -> list[dict[str, Any]]:
    """A row a pair in the baseline's order; a failed judgement has no preference, and says why."""
    rows = []
    for (one, other), verdict in zip(pairs, verdicts, strict=True):
        first, second = baseline.rows[one], outputs.rows[other]
        row = {
            "instruction": first.instruction,
            "output_1": first.output,
            "generator_1": baseline.generator,
            "dataset": first.dataset,
            "output_2": second.output,
            "generator_2": outputs.generator,
            "annotator": annotator,
            "preference": None if verdict.preference is None else 1 + verdict.preference,
            "raw_completion": verdict.raw,
            "time_per_example": verdict.seconds,
            "price_per_example": verdict.price,
        }
        rows.append(row if verdict.preference is not None else row | {"failure": verdict.failure})
    return rows


def write_leaderboard(
    path: Path, outputs: OutputFile, numbers: PairNumbers, length: LengthControl | None, remark: str
) -> None:
    """One row, with AlpacaEval's columns and a last one of ours.

    The length-controlled ones are empty where there is no such number. `remark` says what went into it: AlpacaEval has
    one name for a fit with difficulties and for one without.
    """
    values: dict[str, Any] = {
        "win_rate": numbers.win_rate * 100,
        "standard_error": _percent(numbers.standard_error),
        "n_wins": numbers.n_wins,
        "n_wins_base": numbers.n_wins_base,
        "n_draws": numbers.n_draws,
        "n_total": numbers.n,
        "discrete_win_rate": numbers.discrete_win_rate * 100,
        "mode": MODE,
        "avg_length": int(outputs.average_length),
        "length_controlled_winrate": None if length is None else length.win_rate * 100,
        "lc_standard_error": None if length is None else _percent(length.standard_error),
        "length_control": remark,
    }
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["", *values])
    writer.writerow([outputs.generator, *values.values()])
    write_text(path, stream.getvalue())


def _percent(value: float | None) -> float | None:
    return None if value is None else value * 100
