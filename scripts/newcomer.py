"""A newcomer's path, timed: clone, set up, first own reward-model score, first own run.

    python scripts/newcomer.py

Clones this checkout's commits into an empty folder and types what the documents say there, with files of the newcomer's
own: a dozen preference pairs, two dozen prompts, a copy of `configs/first_run.yaml`. Needs what `make setup` needs;
takes some minutes. Prints a line a step.
"""

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
TOPICS = "bread rain chess trains honey paper clocks rivers gardens letters lamps bridges".split()


def own_files(folder: Path) -> None:
    """What a newcomer brings."""
    pairs = []
    for topic in TOPICS:
        asked = {"role": "user", "content": f"Tell me about {topic}."}
        answers = {"chosen": f"Gladly. A word about {topic}: they repay patience.", "rejected": "No."}
        pairs.append({side: [asked, {"role": "assistant", "content": text}] for side, text in answers.items()})
    prompts = [{"prompt": f"{verb} {topic}."} for verb in ("Say something about", "Praise") for topic in TOPICS]
    for name, rows in (("my-pairs", pairs), ("my-prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(folder / "configs/first_run.yaml", folder / "my.yaml")


def main() -> None:
    """All steps; ends with the first one that fails."""
    with tempfile.TemporaryDirectory(prefix="gpo-newcomer-") as name:
        folder = Path(name) / "gpo"
        started = time.monotonic()

        def step(title: str, *words: str) -> None:
            before = time.monotonic()
            subprocess.run(words, cwd=None if words[0] == "git" else folder, check=True)
            now = time.monotonic()
            print(f"{title}: {now - before:.0f} s, {now - started:.0f} s since the clone began", flush=True)

        step("clone", "git", "clone", "-q", "--no-local", str(HERE), str(folder))
        step("set-up", "make", "setup")
        own_files(folder)
        gpo = ".venv/bin/gpo"
        step("model", ".venv/bin/python", "scripts/smollm2.py", "models/smollm2-135m-instruct")
        pairs = ("train=my-pairs.jsonl", "heldout=my-pairs.jsonl", "output=models/my-gpm")
        step("reward model", gpo, "reward", "train", "configs/quickstart_reward.yaml", *pairs)
        files = ("--data", "my-pairs.jsonl", "--output", "my-scores.jsonl")
        step("first own score", gpo, "reward", "score", "--model", "models/my-gpm", *files)
        step("first own run", gpo, "run", "my.yaml")
        step("report", gpo, "report", "runs/mine")


if __name__ == "__main__":
    main()
