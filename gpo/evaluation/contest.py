"""`gpo tournament`: all checkpoints against each other from one embedding of each answer."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpo.cluster.runtime import relative
from gpo.errors import UserError
from gpo.evaluation.embedded import EmbeddedFile, EmbeddingReader, ReaderSettings, win_probability
from gpo.evaluation.folders import make_folder
from gpo.evaluation.outputs import OutputFile, pair_rows, read_outputs
from gpo.evaluation.tournament import FloatArray, Tournament, tournament
from gpo.evaluation.tournament_picture import picture
from gpo.evaluation.winrate import RESAMPLES
from gpo.files import write_json, write_text
from gpo.printable import tell
from reward.errors import RewardInputError

FORMAT_VERSION = 1

Pairs = list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TournamentRequest:
    """What the command line asks for, but for the judge."""

    outputs: list[Path]
    output: Path
    seed: int = 0
    """Of the bootstrap."""


def hold_tournament(request: TournamentRequest, settings: ReaderSettings, cache: Path) -> int:
    """Read, compare, write and print; returns the exit status. Raises UserError and StageError."""
    files = [read_outputs(path) for path in request.outputs]
    names = _names(files)
    # Row b of each file answers the first file's prompt b.
    rows = [[other for _, other in pair_rows(files[0], file)] for file in files]
    make_folder("--output", request.output)
    # What an earlier start wrote must not outlive a start that fails.
    for name in ("tournament.json", "tournament.svg"):
        (request.output / name).unlink(missing_ok=True)
    try:
        reader = EmbeddingReader(settings, cache)
        embedded = [reader.read(file) for file in files]
        judge = _judge_record(reader, settings, files[0])
    except RewardInputError as error:
        raise UserError(str(error)) from None
    result = tournament(win_table(embedded, rows, judge["tau"]), request.seed)
    record = {
        "format_version": FORMAT_VERSION,
        "judge": judge,
        "bootstrap": {"draws": RESAMPLES, "seed": request.seed},
        **_numbers(files, names, result, [file.truncated for file in embedded]),
    }
    write_json(request.output / "tournament.json", record)
    write_text(request.output / "tournament.svg", picture(names, result))
    tell(summary(names, result))
    tell(f"tournament.json and tournament.svg: {relative(request.output)}")
    return 0


def win_table(embedded: list[EmbeddedFile], rows: list[list[int]], tau: float) -> FloatArray:
    """win_BNN from one embedding of each answer; the arithmetic of a pair is that of `gpo eval`."""
    checkpoints, prompts = len(embedded), len(rows[0])
    win_BNN = np.full((prompts, checkpoints, checkpoints), 0.5)
    for i in range(checkpoints):
        for j in range(i):
            pairs: Pairs = list(zip(rows[i], rows[j], strict=True))
            loses_B = win_probability(embedded[i], embedded[j], pairs, tau).numpy()
            win_BNN[:, j, i], win_BNN[:, i, j] = loses_B, 1 - loses_B
    return win_BNN


def _names(files: list[OutputFile]) -> list[str]:
    if len(files) < 2:
        raise UserError("--outputs: one file; expected at least two, one a checkpoint")
    names = [file.generator for file in files]
    if len(set(names)) < len(names):
        names = [str(file.path) for file in files]
    if len(set(names)) < len(names):
        raise UserError("--outputs: the same file twice; name each once")
    return names


def _judge_record(reader: EmbeddingReader, settings: ReaderSettings, file: OutputFile) -> dict[str, Any]:
    """The reward model by name and content, and how it read; each file's own content stands with its checkpoint."""
    named = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    made_from = {key: value for key, value in reader.made_from(file).items() if key != "data"}
    return {"kind": "gpm", **named, "tau": reader.tau, "made_from": made_from}


def _numbers(files: list[OutputFile], names: list[str], result: Tournament, truncated: list[int]) -> dict[str, Any]:
    return {
        "prompts": len(files[0].rows),
        "checkpoints": [
            {
                "name": name,
                "file": str(file.path),
                "sha256": file.sha256,
                "average_length": file.average_length,
                "truncated": cut,
                "nash_weight": float(nash),
                "elo": float(elo),
                "mean_win_rate": float(mean),
            }
            for name, file, cut, nash, elo, mean in zip(
                names, files, truncated, result.nash_N, result.elo_N, _mean_over_others(result), strict=True
            )
        ],
        "win_rate": result.win_rate_NN.tolist(),
        "ci95_low": result.low_NN.tolist(),
        "ci95_high": result.high_NN.tolist(),
        "decided_triples": result.decided_triples,
        "cycles": [
            {
                "checkpoints": [names[place] for place in cycle.checkpoints],
                "win_rates": list(cycle.win_rates),
                "decided": cycle.decided,
            }
            for cycle in result.cycles
        ],
    }


def _mean_over_others(result: Tournament) -> FloatArray:
    count = len(result.win_rate_NN)
    mean: FloatArray = (result.win_rate_NN.sum(1) - 0.5) / (count - 1)
    return mean


def summary(names: list[str], result: Tournament) -> str:
    """The matrix and what follows from it, for a terminal."""
    width = max(map(len, names))
    lines = ["win rate of the row over the column, % (95 % interval over prompts in tournament.json)"]
    lines.append(" " * (width + 4) + "".join(f"{f'({n})':>7}" for n in range(1, len(names) + 1)) + "   Nash    Elo")
    for number, name in enumerate(names):
        cells = "".join(
            f"{'-' if number == other else f'{100 * rate:.1f}':>7}"
            for other, rate in enumerate(result.win_rate_NN[number])
        )
        tail = f"{result.nash_N[number]:>7.2f}{result.elo_N[number]:>7.0f}"
        lines.append(f"({number + 1}) {name:<{width}}{cells}{tail}")
    sure = sum(cycle.decided for cycle in result.cycles)
    lines.append(
        f"cyclic triples: {len(result.cycles)} of {result.decided_triples}, {sure} of them with all three intervals "
        "beyond one half"
    )
    for cycle in result.cycles[:5]:
        lines.append("  " + " > ".join(names[place] for place in (*cycle.checkpoints, cycle.checkpoints[0])))
    return "\n".join(lines)
