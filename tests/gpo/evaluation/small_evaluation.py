"""What the evaluation's tests share: a tiny reward model and output files."""

import json
from pathlib import Path
from typing import Any

from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

ALPACA_EVAL_SHA256 = "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62"
"""Of the published template's bytes; another text is another judge."""
WORDS = "rain bread chess honey clocks rivers paper trains gold salt iron moss".split()


def make_gpm(folder: Path) -> Path:
    """A random gated GPM of width 6 on a tiny Llama, bfloat16, whose rounding depends on what is computed together."""
    import torch

    backbone = save_tiny_model(folder / "backbone", layers=1, dtype=torch.bfloat16)
    reward = GeneralPreferenceModel.from_backbone(backbone, RewardSettings.published(6, True), seed=1)
    reward.save_pretrained(folder / "gpm")
    return folder / "gpm"


def answers(name: str, prompts: int = 12) -> list[dict[str, Any]]:
    """Rows whose texts and lengths differ from generator to generator, and from prompt to prompt."""
    salt = sum(map(ord, name))
    rows = []
    for number in range(prompts):
        words = [WORDS[(number * 5 + salt * (place + 1)) % len(WORDS)] for place in range(1 + (salt + number) % 9)]
        instruction = f"Say something about {WORDS[number % len(WORDS)]}, number {number}."
        rows.append({"dataset": "small", "instruction": instruction, "output": " ".join(words), "generator": name})
    return rows


def write_answers(folder: Path, name: str, rows: list[dict[str, Any]] | None = None) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(answers(name) if rows is None else rows), "utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
