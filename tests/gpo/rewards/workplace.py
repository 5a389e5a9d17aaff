"""A tiny backbone, pairs and a config for reward training, and the surroundings of its processes."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from tests.reward.training_data import cycle, write_rows
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[3]
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def make_workplace(made: Path) -> None:
    """`base`, `train.jsonl`, `heldout.jsonl` and `config.yaml` in a folder."""
    save_tiny_model(made / "base")
    write_rows(made / "train.jsonl", [row for prompt in ("Choose.", "Hand?", "Go") for row in cycle(prompt)])
    write_rows(made / "heldout.jsonl", cycle("Show!"))
    values: dict[str, Any] = {
        "backbone": "base",
        "train": "train.jsonl",
        "heldout": "heldout.jsonl",
        "output": "out",
        "tune": "full",
        "value_head_dim": 4,
        "gated": True,
        "learning_rate": 1e-3,
        "epochs": 4,
        "batch_pairs": 6,
        "dtype": "float32",
        "save_steps": 2,
        "evaluate_steps": 4,
        "cluster": {"threads": 1, "wait_seconds": 200},
    }
    (made / "config.yaml").write_text(yaml.safe_dump(values))


def environment(beside: Path | None = None, **more: str) -> dict[str, str]:
    """Of a process that finds this code, and the packages in the folder `beside`."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", ""), str(beside or "")]
    return {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def losses(output: Path) -> list[float]:
    """Of the steps of a training, as it wrote them."""
    lines = (output / "training/metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]
