"""A run's settings with as little in them as will do; tests change single values."""

from pathlib import Path
from typing import Any

import yaml

from gpo.config import RunConfig


def run_values(folder: Path = Path("."), **changes: Any) -> dict[str, Any]:
    """As they stand in a YAML file; a change of a section is merged into it (`train={"workers": 2}`)."""
    values: dict[str, Any] = {
        "name": "small",
        "iterations": 2,
        "policy": {"model": str(folder / "policy"), "dtype": "float32"},
        "prompts": {"train": str(folder / "prompts.jsonl"), "heldout_count": 2},
        "rollout": {"samples": 2, "max_tokens": 8},
        "preference": {"sources": {"taste": f"python:{folder / 'taste.py'}:prefer"}, "train_on": "taste"},
        "target": {"beta": 1.0},
    }
    for key, change in changes.items():
        values[key] = values.get(key, {}) | change if isinstance(change, dict) else change
    return values


def run_config(folder: Path = Path("."), **changes: Any) -> RunConfig:
    return RunConfig.model_validate(run_values(folder, **changes))


def write_yaml(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    return path
