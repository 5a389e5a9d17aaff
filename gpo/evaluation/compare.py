"""`gpo eval`: two files of answers, a judge, and numbers that say how they were made."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpo.cluster.runtime import relative
from gpo.errors import StageError, UserError
from gpo.evaluation.annotations import annotation_rows, write_leaderboard
from gpo.evaluation.file_record import file_record
from gpo.evaluation.folders import make_folder
from gpo.evaluation.judges import Judge, Verdict
from gpo.evaluation.length_control import FOLDS, FloatArray, GamedRows, LengthControl, length_controlled
from gpo.evaluation.length_files import read_difficulties, read_gamed
from gpo.evaluation.outputs import NAMED, OutputFile, pair_rows, read_outputs
from gpo.evaluation.pair_numbers import PairNumbers, by_length, pair_numbers
from gpo.evaluation.winrate import RESAMPLES, win_rate
from gpo.files import write_json
from gpo.printable import tell
from reward.errors import RewardInputError

FORMAT_VERSION = 1
BOOTSTRAP_SEED = 0
"""Also what `gpo tournament` takes unless told otherwise, so that both give the same interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What the command line asks for, but for the judge."""

    outputs: Path
    baseline: Path
    output: Path
    difficulties: Path | None = None
    gamed: Path | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is known before the judge is asked."""

    baseline: OutputFile
    outputs: OutputFile
    pairs: list[tuple[int, int]]
    difficulty_N: FloatArray | None
    gamed: GamedRows | None


def prepare_comparison(request: EvalRequest) -> Comparison:
    """Read and check all files; raises UserError."""
    baseline, outputs = read_outputs(request.baseline), read_outputs(request.outputs)
    if baseline.generator == outputs.generator:
        raise UserError(
            f"{outputs.path} and {baseline.path}: both are by the generator {outputs.generator!r}, which AlpacaEval's "
            "tools take for a model against itself and give 50 %, whatever a judge says; give one of them another "
            "`generator` (`gpo generate --name`)"
        )
    pairs = pair_rows(baseline, outputs)
    if request.gamed is not None and request.difficulties is None:
        raise UserError("--gamed: gamed rows need --difficulties too, because difficulty is a term of their model")
    difficulty_N = None if request.difficulties is None else read_difficulties(request.difficulties, len(pairs))
    gamed = None if request.gamed is None else read_gamed(request.gamed)
    make_folder("--output", request.output)
    return Comparison(baseline, outputs, pairs, difficulty_N, gamed)


def evaluate_pair(request: EvalRequest, comparison: Comparison, judge: Judge) -> int:
    """Judge, count, write and print; returns the exit status.

    Raises StageError, with the failed rows named and no headline number written, when a judgement failed.
    """
    baseline, outputs, pairs = comparison.baseline, comparison.outputs, comparison.pairs
    leaderboard = request.output / "leaderboard.csv"
    # What an earlier start wrote must not outlive a start that fails.
    for path in (leaderboard, request.output / "metrics.json", request.output / "annotations.json"):
        path.unlink(missing_ok=True)
    try:
        verdicts = judge.judge(baseline, outputs, pairs)
    except RewardInputError as error:
        raise UserError(str(error)) from None
    rows = annotation_rows(baseline, outputs, pairs, verdicts, judge.annotator)
    write_json(request.output / "annotations.json", rows)
    made = _made(request, comparison, judge)
    failed = [number for number, verdict in enumerate(verdicts, start=1) if verdict.preference is None]
    if failed:
        record = {**made, "n_judged": len(verdicts) - len(failed), "win_rate": None, "failed_rows": failed}
        write_json(request.output / "metrics.json", record)
        raise _failure(request, verdicts, failed)
    # As AlpacaEval reads it back from the file, so that both compute the very same numbers.
    win_N = np.array([row["preference"] for row in rows]) - 1
    numbers = pair_numbers(win_N)
    length, remark = _length_control(comparison, win_N)
    write_json(request.output / "metrics.json", made | _numbers(comparison, win_N, numbers, length, remark))
    write_leaderboard(leaderboard, outputs, numbers, length, remark)
    tell(_summary(comparison, judge, numbers, length, remark))
    tell(f"annotations, leaderboard, metrics: {relative(request.output)}")
    return 0


def _lengths(comparison: Comparison) -> tuple[FloatArray, FloatArray]:
    """Characters of the model's and of the baseline's answers."""
    model = [len(comparison.outputs.rows[other].output) for _, other in comparison.pairs]
    base = [len(comparison.baseline.rows[one].output) for one, _ in comparison.pairs]
    return np.array(model, dtype=np.float64), np.array(base, dtype=np.float64)


def _length_control(comparison: Comparison, win_N: FloatArray) -> tuple[LengthControl | None, str]:
    """The fit, and in words what went into it or why there is none."""
    if len(win_N) < FOLDS:
        return None, f"none: {len(win_N)} rows, and the fit needs at least {FOLDS}"
    model_N, base_N = _lengths(comparison)
    found = length_controlled(win_N, base_N - model_N, comparison.difficulty_N, comparison.gamed)
    if comparison.difficulty_N is None:
        return found, "without instruction difficulties and gamed rows (none were given)"
    if comparison.gamed is None:
        return found, "with instruction difficulties, without gamed rows (none were given)"
    return found, "with instruction difficulties and gamed rows, as AlpacaEval 2's length_controlled_v1"


def _made(request: EvalRequest, comparison: Comparison, judge: Judge) -> dict[str, Any]:
    """How the numbers were made."""
    files = {"outputs": comparison.outputs, "baseline": comparison.baseline}
    return {
        "format_version": FORMAT_VERSION,
        **{
            name: {"file": str(file.path), "sha256": file.sha256, "generator": file.generator}
            for name, file in files.items()
        },
        "annotator": judge.annotator,
        "judge": judge.record(),
        "difficulties": file_record(request.difficulties),
        "gamed": file_record(request.gamed),
        "n_asked": len(comparison.pairs),
    }


def _numbers(
    comparison: Comparison, win_N: FloatArray, numbers: PairNumbers, length: LengthControl | None, remark: str
) -> dict[str, Any]:
    model_N, base_N = _lengths(comparison)
    controlled: dict[str, Any] = {"length_controlled_win_rate": None, "length_control": remark}
    if length is not None:
        controlled = {
            "length_controlled_win_rate": length.win_rate,
            "length_controlled_standard_error": length.standard_error,
            "length_control": remark,
            "length_control_coefficients": length.coefficients,
            "length_control_inverse_penalty": length.inverse_penalty,
        }
    return {
        "n_judged": numbers.n,
        "win_rate": numbers.win_rate,
        "standard_error": numbers.standard_error,
        "ci95": list(win_rate(win_N[:, None, None], seed=BOOTSTRAP_SEED).ci95),
        "bootstrap": {"draws": RESAMPLES, "seed": BOOTSTRAP_SEED},
        "discrete_win_rate": numbers.discrete_win_rate,
        "n_wins": numbers.n_wins,
        "n_wins_base": numbers.n_wins_base,
        "n_draws": numbers.n_draws,
        **controlled,
        "average_length": {"outputs": float(model_N.mean()), "baseline": float(base_N.mean())},
        "by_length_ratio": [asdict(bucket) for bucket in by_length(win_N, model_N, base_N)],
    }


def _summary(
    comparison: Comparison, judge: Judge, numbers: PairNumbers, length: LengthControl | None, remark: str
) -> str:
    """A few lines for people."""

    def rate(value: float, error: float | None) -> str:
        return f"{value:.2%}" + ("" if error is None else f" +- {error * 100:.2f} points")

    model_N, base_N = _lengths(comparison)
    # Without difficulties every row has the same controlled rate: their spread is 0 and says nothing of its error.
    error = None if length is None or comparison.difficulty_N is None else length.standard_error
    lines = [
        f"{comparison.outputs.generator} against {comparison.baseline.generator}, judged by {judge.annotator}: "
        f"{numbers.n} judged of {len(comparison.pairs)} asked",
        f"  win rate                    {rate(numbers.win_rate, numbers.standard_error)}",
        f"  discrete win rate           {numbers.discrete_win_rate:.2%} ({numbers.n_wins} won, {numbers.n_wins_base} "
        f"lost, {numbers.n_draws} drawn)",
        "  length-controlled win rate  " + (remark if length is None else f"{rate(length.win_rate, error)}, {remark}"),
        f"  average length              {model_N.mean():.0f} characters, the baseline's {base_N.mean():.0f}",
    ]
    return "\n".join(lines)


def _failure(request: EvalRequest, verdicts: list[Verdict], failed: list[int]) -> StageError:
    named = "; ".join(f"row {number}: {verdicts[number - 1].failure}" for number in failed[:NAMED])
    more = "; ..." if len(failed) > NAMED else ""
    return StageError(
        f"{len(failed)} of {len(verdicts)} judgements failed ({named}{more}), so there is no win rate; all are "
        f"named in {relative(request.output / 'metrics.json')}. Start the same command again: what was judged is kept"
    )
