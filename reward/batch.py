"""Batch scoring: a file of pairs and groups in, one line out for each row in, in order.
What it is: rows in chunks through one reward model, so that memory stays flat however long the file is; bad
rows become lines that say what is wrong; a killed job goes on where it stopped and ends with the same bytes.
What it is not: it prints nothing and knows no command line (`gpo.rewards.scoring`).

A pair's line has `score` (chosen over rejected), `score_over_tau`, `probability`, `gate`, `truncated`; a
group's has the first three as K x K lists, `table`, `table_over_tau`, `table_probability`, then `gate` and
`truncated`; a bad row's has `error`. All have `row`.
Shape suffixes: N answers of a chunk, K answers of a row, D embedding width, L = D / 2 blocks.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path

import torch
from torch import Tensor

from reward.batch_forms import Comparison, comparison_of_row, encode_comparisons
from reward.encoding import EncodedConversation
from reward.errors import RewardInputError
from reward.fingerprint import file_fingerprint, model_fingerprint
from reward.part_file import Line, PartFile, check_output
from reward.placement import choose_placement
from reward.preference import preference_probability, preference_table
from reward.row_files import FileRow, read_rows
from reward.scorer import PreferenceScorer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
_PAIR_VALUES = ("score", "score_over_tau", "probability")
_GROUP_TABLES = ("table", "table_over_tau", "table_probability")
_PARQUET_ROWS = 1024
_FAILED_NAMED = 3


@dataclass(frozen=True)
class BatchSettings:
    """What, besides model and data, decides the numbers to the last bit."""

    backend: str = "auto"
    dtype: str = "auto"
    max_length: int = 4096
    batch_rows: int = 64
    """Rows that are read, scored and written together."""


@dataclass
class BatchSummary:
    """Counts over the whole output, also over lines of an earlier start."""

    rows: int = 0
    failed: int = 0
    first_failed: list[int] = field(default_factory=list)
    """Numbers of the first few rows that failed."""
    truncated: int = 0
    """Rows with an answer that did not fit into max_length."""
    pairs: int = 0
    preferred: int = 0
    """Pairs whose chosen answer has a score above 0."""

    def add(self, line: Line) -> None:
        self.rows += 1
        if not _is_good(line):
            self.failed += 1
            if len(self.first_failed) < _FAILED_NAMED:
                self.first_failed.append(line["row"])
            return
        self.truncated += any(line["truncated"])
        self.pairs += "score" in line
        self.preferred += line.get("score", 0.0) > 0


def score_file(
    model: Path,
    data: Path,
    output: Path,
    settings: BatchSettings | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> BatchSummary:
    """Score every row of `data`; raises RewardInputError for mistakes, and for the first bad row if `strict`.

    `progress` is called with the number of rows done after each chunk.
    """
    chosen = settings or BatchSettings()
    check_output(output, overwrite)
    join = write_parquet if output.suffix == ".parquet" else None
    with PartFile(output, made_from(model, data, chosen), join) as part:
        summary = BatchSummary()
        for line in part.lines():
            summary.add(_checked(line, data, strict))
        if summary.rows:
            logger.info("%s: going on after %d rows of an earlier start", part.path, summary.rows)
        scorer = PreferenceScorer.from_pretrained(model, chosen.backend, chosen.dtype, chosen.max_length)
        for lines in score_rows(scorer, read_rows(data), chosen.batch_rows, summary.rows):
            part.append(takewhile(_is_good, lines) if strict else lines)
            for line in lines:
                summary.add(_checked(line, data, strict))
            if progress is not None:
                progress(summary.rows)
        part.finish()
    return summary


def _is_good(line: Line) -> bool:
    return "error" not in line


def _checked(line: Line, data: Path, strict: bool) -> Line:
    if strict and not _is_good(line):
        raise RewardInputError(f"{data}, {line['error']}")
    return line


def made_from(model: Path, data: Path, settings: BatchSettings) -> dict[str, str]:
    """All that decides the output, by name; files by their content, and "auto" by what it means here.

    Raises RewardInputError for what is no checkpoint directory, and for options that cannot be.
    """
    place = choose_placement(model, settings.backend, settings.dtype)
    values = {name: str(value) for name, value in dataclasses.asdict(settings).items()}
    values |= {"backend": place.backend, "device": place.device, "dtype": place.dtype}
    files = {"data": file_fingerprint(data), "model": model_fingerprint(model)}
    return {"format_version": str(FORMAT_VERSION), **files, **values}


def score_rows(
    scorer: PreferenceScorer, rows: Iterator[FileRow], batch_rows: int, done: int = 0
) -> Iterator[list[Line]]:
    """Lines of the rows after the first `done`, a chunk at a time."""
    # Rounding depends on what is computed together, so a chunk that was begun is computed whole again.
    skip = done % batch_rows
    left = islice(rows, done - skip, None)
    while chunk := list(islice(left, batch_rows)):
        lines = score_chunk(scorer, chunk)[skip:]
        skip = 0
        if lines:
            yield lines


@dataclass(frozen=True)
class _Encoded:
    comparison: Comparison
    rows: list[EncodedConversation]


def score_chunk(scorer: PreferenceScorer, chunk: Sequence[FileRow]) -> list[Line]:
    """A line for each row; each answer is embedded once, all of the chunk together."""
    encoded = _encode(scorer, chunk)
    rows = [row for one in encoded if isinstance(one, _Encoded) for row in one.rows]
    v_ND, gate_NL = _embed(scorer, rows) if rows else (torch.zeros(0), None)
    lines: list[Line] = []
    start = 0
    for one in encoded:
        if not isinstance(one, _Encoded):
            lines.append(one)
            continue
        own = slice(start, start + len(one.rows))
        start = own.stop
        # As in PreferenceScorer.table: gates agree unless truncation cut the prompt differently.
        gate_L = None if gate_NL is None else gate_NL[own].mean(0)
        lines.append(_line(one, v_ND[own], gate_L, scorer.tau))
    return lines


def _encode(scorer: PreferenceScorer, chunk: Sequence[FileRow]) -> list[_Encoded | Line]:
    """Of each row its token rows, or the line that says why there are none."""
    forms = [_comparison(row) for row in chunk]
    good = [form for form in forms if isinstance(form, Comparison)]
    try:
        found = dict(zip((form.number for form in good), encode_comparisons(good, scorer.encoder), strict=True))
    except RewardInputError:
        # Which rows are bad is found one by one.
        return [_encode_alone(scorer, form) if isinstance(form, Comparison) else form for form in forms]
    return [_Encoded(form, found[form.number]) if isinstance(form, Comparison) else form for form in forms]


def _encode_alone(scorer: PreferenceScorer, form: Comparison) -> _Encoded | Line:
    try:
        return _Encoded(form, encode_comparisons([form], scorer.encoder)[0])
    except RewardInputError as error:
        return {"row": form.number, "error": str(error)}


def _comparison(row: FileRow) -> Comparison | Line:
    try:
        return comparison_of_row(row)
    except RewardInputError as error:
        return {"row": row.number, "error": str(error)}


@torch.no_grad()
def _embed(scorer: PreferenceScorer, rows: list[EncodedConversation]) -> tuple[Tensor, Tensor | None]:
    v_ND, gate_NL = scorer.heads(*scorer.backend.hidden_states(rows))
    return v_ND.cpu(), None if gate_NL is None else gate_NL.cpu()


def _line(one: _Encoded, v_KD: Tensor, gate_L: Tensor | None, tau: float) -> Line:
    number = one.comparison.number
    table_KK = preference_table(v_KD, gate_L=gate_L)
    if not table_KK.isfinite().all():
        return {"row": number, "error": f"row {number}: its scores are not finite; try the dtype float32"}
    rest: Line = {
        "gate": None if gate_L is None else gate_L.tolist(),
        "truncated": [row.truncated for row in one.rows],
    }
    score_KK = table_KK.double()
    tables_KK = (score_KK, score_KK / tau, preference_probability(score_KK, tau))
    values: Line
    if one.comparison.is_pair:
        values = {name: float(one_KK[0, 1]) for name, one_KK in zip(_PAIR_VALUES, tables_KK, strict=True)}
    else:
        values = {name: one_KK.tolist() for name, one_KK in zip(_GROUP_TABLES, tables_KK, strict=True)}
    return {"row": number, **values, **rest}


def write_parquet(path: Path, lines: Iterator[Line]) -> None:
    """A column for each field of any line; null where a line has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, numbers = pa.float64(), pa.list_(pa.float64())
    columns = {"row": pa.int64(), **dict.fromkeys(_PAIR_VALUES, number)}
    columns |= dict.fromkeys(_GROUP_TABLES, pa.list_(numbers))
    columns |= {"gate": numbers, "truncated": pa.list_(pa.bool_()), "error": pa.string()}
    schema = pa.schema(list(columns.items()))
    with path.open("wb") as stream:
        with pq.ParquetWriter(stream, schema) as writer:
            while group := list(islice(lines, _PARQUET_ROWS)):
                writer.write_table(pa.Table.from_pylist(group, schema))
        stream.flush()
        os.fsync(stream.fileno())
