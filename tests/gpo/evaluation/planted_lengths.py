"""Planted annotations, difficulties and gamed rows: what `make alpaca-eval` gives to both programs."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpo.evaluation.length_control import FloatArray, GamedRows

ROWS = 200


@dataclass(frozen=True)
class Planted:
    win_N: FloatArray
    delta_len_N: FloatArray
    difficulty_N: FloatArray
    gamed: GamedRows
    annotations: list[dict[str, Any]]


def planted(seed: int = 8, rows: int = ROWS) -> Planted:
    """A judge that likes length, instructions of different difficulty, soft and hard labels, and a tie."""
    rng = np.random.default_rng(seed)
    difficulty_N = rng.normal(0, 1.3, rows)
    base_N = rng.integers(50, 2000, rows)
    model_N = (base_N * rng.lognormal(0.3, 0.5, rows)).astype(int) + 1
    logit_N = -0.2 + 0.9 * np.tanh((model_N - base_N) / 600) + 0.5 * difficulty_N + rng.normal(0, 1.2, rows)
    win_N = 1 / (1 + np.exp(-logit_N))
    win_N[::7] = win_N[::7].round()
    win_N[3] = 0.5
    length_G = np.concatenate([rng.normal(mean, 0.6, rows) for mean in (-1.0, 1.0)])
    preference_G = 1 / (1 + np.exp(-0.9 * np.tanh(length_G) + rng.normal(0, 0.3, 2 * rows)))
    gamed = GamedRows(preference_G, length_G, np.tile(difficulty_N, 2), np.zeros(2 * rows, dtype=bool))
    annotations = [
        {
            "instruction": f"question {number}",
            "output_1": "b" * int(base),
            "generator_1": "base",
            "dataset": "planted",
            "output_2": "m" * int(model),
            "generator_2": "model",
            "annotator": "planted",
            "preference": 1 + float(win),
        }
        for number, (base, model, win) in enumerate(zip(base_N, model_N, win_N, strict=True))
    ]
    # What stands in a file is 1 + win, which rounds.
    from_file_N = np.array([row["preference"] for row in annotations]) - 1
    return Planted(from_file_N, (base_N - model_N).astype(float), difficulty_N, gamed, annotations)


def write_planted(folder: Path) -> tuple[Path, Path]:
    """instruction_difficulty.csv and df_gamed.csv as AlpacaEval has them, and annotations.json."""
    rows = planted()
    difficulties, gamed = folder / "instruction_difficulty.csv", folder / "df_gamed.csv"
    (folder / "annotations.json").write_text(json.dumps(rows.annotations))
    with difficulties.open("w", newline="") as stream:
        csv.writer(stream).writerows([("", "instruction_difficulty"), *enumerate(map(repr_of, rows.difficulty_N))])
    header = ["index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
    with gamed.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for number in range(len(rows.gamed.preference_G)):
            values = (rows.gamed.preference_G, rows.gamed.std_delta_len_G, rows.gamed.difficulty_G)
            model = "concise" if number < ROWS else "verbose"
            writer.writerow([number % ROWS, *(repr_of(value[number]) for value in values), False, model])
    return difficulties, gamed


def repr_of(value: float) -> str:
    return repr(float(value))
