"""A folder in which the commands of README and docs can be typed: the repository's files, tiny models for real ones."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from reward import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.gpo.report_runs import plant_run
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]


def make_workplace(folder: Path) -> None:
    """What the quick start leaves behind, small: configs, models, pairs, a finished run."""
    for name in ("configs", "examples", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    policy = save_tiny_model(folder / "models/smollm2-135m-instruct")
    model = GeneralPreferenceModel.from_backbone(policy, RewardSettings.published(4, True), seed=3)
    model.save_pretrained(folder / "models/quickstart-gpm", AutoTokenizer.from_pretrained(policy))
    model.save_pretrained(folder / "my-gpm", AutoTokenizer.from_pretrained(policy))
    pairs = [pair(f"Say {word}.", f"{word}, gladly", "no") for word in ("bread", "rain", "chess", "honey")]
    text = "".join(json.dumps(row) + "\n" for row in pairs)
    (folder / "models/quickstart-preferences").mkdir()
    for name in ("train", "heldout"):
        (folder / f"models/quickstart-preferences/{name}.jsonl").write_text(text, "utf-8")
    for name in ("pairs", "more"):
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    prompts = [{"prompt": f"Say something about {word}, number {n}."} for word in ("bread", "rain") for n in range(12)]
    (folder / "my-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), "utf-8")
    plant_measured_run(folder / "runs/quickstart")


def plant_measured_run(root: Path) -> None:
    """A finished run whose last iteration has the timings that `gpo plan --rates` takes."""
    directory = plant_run(root)
    shutil.copyfile(ROOT / "configs/quickstart.yaml", root / "config.yaml")
    directory.record("shard", iteration=2, shard=0, sample_seconds=12.0, score_seconds=4.0)
    directory.record("stage", stage="generate", iteration=2, seconds=20.0, answers=45, mean_length_tokens=35.0)
    directory.record("stage", stage="train", iteration=2, seconds=40.0, train_seconds=30.0)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    asked = {"role": "user", "content": prompt}
    sides = {"chosen": chosen, "rejected": rejected}
    return {side: [asked, {"role": "assistant", "content": text}] for side, text in sides.items()} | {"group": prompt}
