"""`gpo reward score`: checks before anything heavy, and the closing lines around `reward.batch`."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpo.cluster.runtime import relative
from gpo.errors import StageError, UserError
from gpo.logs import Progress
from gpo.modelfiles import longest_conversation

if TYPE_CHECKING:
    from reward.batch import BatchSummary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """What the command line asks for."""

    model: Path
    data: Path
    output: Path
    strict: bool = False
    overwrite: bool = False
    backend: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    """None: 4096, or the model's context where that is shorter."""
    batch_rows: int = 64


def score_rewards(request: ScoreRequest) -> int:
    """Score the file, say what came out; returns the exit status.

    Raises UserError for the caller's mistakes and StageError if rows could not be scored.
    """
    from reward.errors import RewardInputError

    try:
        rows = _check(request)
        summary = _score(request, rows)
    except RewardInputError as error:
        raise UserError(str(error)) from None
    _refuse_failed(request, summary)
    return 0


def _check(request: ScoreRequest) -> int:
    """Number of rows; every mistake that can be found without loading the model is found here."""
    from reward.batch_forms import check_rows
    from reward.part_file import check_output
    from reward.source_check import check_model, check_template

    check_model(request.model)
    if request.data.resolve() == request.output.resolve():
        raise UserError(f"--output {request.output} is the data file itself; give another name")
    # The folder of the output is made here, so the data are looked at first.
    counts = check_rows(request.data, request.strict)
    if not counts.custom:
        # Rows in the custom form need no template; others beside them fail one by one.
        check_template(request.model)
    check_output(request.output, request.overwrite)
    return counts.rows


def _score(request: ScoreRequest, rows: int) -> "BatchSummary":
    from gpo.cpu import prepare_process

    prepare_process(len(os.sched_getaffinity(0)))
    from reward.batch import BatchSettings, score_file

    settings = BatchSettings(
        request.backend, request.dtype, longest_conversation(request.model, request.max_length), request.batch_rows
    )
    bar = Progress("scoring", rows, "rows")
    started = time.monotonic()
    summary = score_file(
        request.model,
        request.data,
        request.output,
        settings,
        strict=request.strict,
        overwrite=request.overwrite,
        progress=bar.update,
    )
    logger.info("%s: %s; %.1f s", relative(request.output), _describe(summary), time.monotonic() - started)
    return summary


def _describe(summary: "BatchSummary") -> str:
    parts = [f"{summary.rows - summary.failed} of {summary.rows} rows scored"]
    if summary.pairs:
        parts.append(f"chosen preferred in {summary.preferred} of {summary.pairs} pairs")
    if summary.truncated:
        parts.append(f"{summary.truncated} rows cut to max_length")
    return ", ".join(parts)


def _refuse_failed(request: ScoreRequest, summary: "BatchSummary") -> None:
    if not summary.failed:
        return
    more = ", ..." if summary.failed > len(summary.first_failed) else ""
    named = ", ".join(map(str, summary.first_failed)) + more
    raise StageError(
        f"{summary.failed} of {summary.rows} rows of {request.data} could not be scored: rows {named}; "
        f"their lines in {relative(request.output)} say why. Mend them and start again with --overwrite"
    )
