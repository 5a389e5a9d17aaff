"""Small files of pairs and groups, and a tiny scorer, for the tests of batch scoring."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

WORDS = "tide water bread date long harbour"


def save_scorer(folder: Path, settings: RewardSettings) -> Path:
    base = save_tiny_model(folder / "base", layers=1)
    GeneralPreferenceModel.from_backbone(base, settings, seed=1).save_pretrained(folder / "reward")
    return folder / "reward"


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def pair(place: int) -> dict[str, Any]:
    prompt = WORDS[: 3 + 5 * (place % 4)]
    return {"chosen": talk(prompt, WORDS[place % 9 :]), "rejected": talk(prompt, WORDS * (1 + place % 3))}


def group(place: int, count: int = 3) -> dict[str, Any]:
    return {"prompt": WORDS[place % 5 :], "responses": [WORDS[k : k + 4 + place % 7] for k in range(count)]}


def mixed(count: int) -> list[dict[str, Any]]:
    return [group(place) if place % 3 == 2 else pair(place) for place in range(count)]


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    else:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
