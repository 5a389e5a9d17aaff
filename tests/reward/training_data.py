"""Small cyclic data and a short way to train a tiny model, for the tests of whole-backbone training."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from reward.pair_sources import PairSource
from reward.pairs import PreferencePair
from reward.training import TrainingTask, train_pairs
from reward.training_settings import TrainingSettings

ANSWERS = ("rock, of course", "paper is what I say", "scissors!")
QUICK: dict[str, Any] = {
    "learning_rate": 1e-3,
    "epochs": 4,
    "batch_pairs": 3,
    "precision": "float32",
    "value_head_dim": 4,
    "gated": True,
}


def cycle(prompt: str) -> list[dict[str, Any]]:
    """Paper beats rock, scissors beat paper, rock beats scissors."""
    rock, paper, scissors = ANSWERS
    edges = ((paper, rock), (scissors, paper), (rock, scissors))
    return [{"instruction": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in edges]


def pair(prompt: str, chosen: str, rejected: str, **values: Any) -> PreferencePair:
    """Two answers to a prompt."""

    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    return PreferencePair(talk(chosen), talk(rejected), **values)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def make_task(folder: Path, backbone: Path, name: str, *, buffer: int = 0, **changes: Any) -> TrainingTask:
    """Three cycles to train on, one and a plain pair held out."""
    train = write_rows(folder / "train.jsonl", [row for prompt in ("Choose.", "Hand?", "Go") for row in cycle(prompt)])
    plain = {"instruction": "One or two?", "chosen": "one", "rejected": "two"}
    heldout = write_rows(folder / "heldout.jsonl", [*cycle("Show!"), plain])
    return TrainingTask(
        backbone=str(backbone),
        train=(PairSource(path=str(train)),),
        heldout=(PairSource(path=str(heldout)),),
        output=str(folder / name),
        settings=TrainingSettings(**{**QUICK, **changes}),
        stream_buffer=buffer,
    )


def train(folder: Path, backbone: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Train in this process; returns the report."""
    report = train_pairs(make_task(folder, backbone, name, **changes))
    assert report is not None
    return report


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """Of a saved model."""
    return load_file(Path(folder) / "model.safetensors")


def same_weights(one: Path | str, other: Path | str) -> bool:
    """Whether two saved models are equal to the bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
