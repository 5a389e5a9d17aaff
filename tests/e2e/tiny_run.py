"""A run small enough for a test, with every part real: vLLM, Ray, TRL, a GPM, all on a tiny random Llama."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from reward import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 600
TOPICS = ("bread", "rain", "chess", "trains", "honey", "paper", "clocks", "rivers")


def make_workplace(folder: Path) -> Path:
    """Policy, GPM, prompts, oracle and config in a folder; returns the config's path."""
    policy, gpm = folder / "policy", folder / "gpm"
    save_tiny_model(policy, model_type="llama")
    settings = RewardSettings.published(4, True)
    from transformers import AutoTokenizer

    GeneralPreferenceModel.from_backbone(policy, settings, seed=3).save_pretrained(
        gpm, AutoTokenizer.from_pretrained(policy)
    )
    rows = [{"prompt": f"Say something about {topic}, number {n}."} for n in range(6) for topic in TOPICS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "oracle.py").write_text(
        '"""Longer is better."""\n\n\n'
        "def prefer(messages, a, b):\n"
        "    return float((len(a.text) > len(b.text)) - (len(a.text) < len(b.text)))\n"
    )
    config = {
        "name": "tiny",
        "seed": 5,
        "iterations": 2,
        "policy": {"model": str(policy), "dtype": "bfloat16"},
        "prompts": {"train": str(folder / "prompts.jsonl"), "heldout_count": 4, "per_iteration": 16},
        "rollout": {"samples": 3, "max_tokens": 24, "shard_prompts": 2},
        "preference": {
            "sources": {"gpm": f"gpm:{gpm}", "oracle": f"python:{folder / 'oracle.py'}:prefer"},
            "train_on": "gpm",
            "judges": ["gpm", "oracle"],
        },
        "target": {"beta": 1.0},
        "train": {"learning_rate": 1e-4, "batch_prompts": 2},
        "evaluation": {"samples": 2, "kl_prompts": 4},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(config: Path, run_dir: Path, *overrides: str) -> list[str]:
    """`gpo run` of this checkout."""
    return [sys.executable, "-m", "gpo", "run", str(config), *overrides, "--run-dir", str(run_dir)]


def environment(beside: Path | None = None) -> dict[str, str]:
    """Offline, this checkout first, and then the packages in the folder `beside`."""
    paths = os.pathsep.join(str(path) for path in (REPOSITORY, beside) if path is not None)
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}


def run_to_end(
    config: Path, run_dir: Path, *overrides: str, beside: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command and give back what it printed."""
    return subprocess.run(
        command(config, run_dir, *overrides),
        env=environment(beside),
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def journal(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of the journal; a torn last line is left out."""
    path = run_dir / "journal.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_until(condition: Any, process: subprocess.Popen[Any], what: str) -> Any:
    """Poll until a condition gives something true; fails when the command ends first or time is up."""
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert process.poll() is None, f"the command ended with {process.returncode} before {what}"
        time.sleep(0.005)  # some of what a tiny run does takes a hundredth of a second
    raise AssertionError(f"no {what} within {DEADLINE_SECONDS} s")


def descendants(process: subprocess.Popen[Any], name: str) -> list[psutil.Process]:
    """Ray workers below the driver whose title contains a name (Ray writes the actor's class there)."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if name in title:
            found.append(child)
    return found
