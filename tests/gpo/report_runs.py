"""Run directories for reports, planted by the project's own writers: any size, a known cycle, and text that attacks.

Nothing is sampled by a model here; `tests/e2e` has the real thing.
"""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

from gpo.files import append_json_line, write_json, write_text
from gpo.journal import FORMAT_VERSION, RunDirectory
from rollout.records import RolloutRow, write_shard

ATTACK = "<script>window.owned = true</script><img src=x onerror='window.owned = true'>"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x1b[31mred\r\x9b1mcsi\u202eright to left"
ATTACKING = "9e3779b100000001"
"""The planted prompt whose words and answers are attacks."""
CYCLE = [[0.0, 0.8, -0.6], [-0.8, 0.0, 0.7], [0.6, -0.7, 0.0]]
"""A over B, B over C, C over A."""
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo zu ar en is on ur".split()
SHARD_PROMPTS = 256
STAGE_SECONDS = {"baseline": 1.0, "generate": 20.0, "train": 40.0, "publish": 5.0, "evaluate": 10.0}
"""Of each iteration; `canary` and `answer` come before the first."""


def skew(rng: random.Random, answers: int) -> list[list[float]]:
    table = [[0.0] * answers for _ in range(answers)]
    for i in range(answers):
        for j in range(i):
            table[i][j] = rng.uniform(-1, 1)
            table[j][i] = -table[i][j]
    return table


def vocabulary(size: int = 8000) -> tuple[list[str], list[float]]:
    """Words, and sums of how often each comes: few often, most seldom, so that texts pack about as real ones do."""
    rng = random.Random(1)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(size)]
    return words, list(itertools.accumulate(1 / (rank + 3) for rank in range(size)))


WORDS, OFTEN = vocabulary()


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, cum_weights=OFTEN, k=words)) + "."


def rollout_row(prompt_id: str, prompt: str, answers: list[str], table: list[list[float]], version: str) -> RolloutRow:
    """Of baseline `self`: the table is that of the answers among themselves."""
    score = [sum(line) / len(line) for line in table]
    return RolloutRow(
        prompt_id=prompt_id,
        prompt=[{"role": "user", "content": prompt}],
        prompt_ids=[1, 2, 3],
        seed=7,
        weight_version=version,
        completion=answers,
        completion_ids=[[5] * len(answer.split()) for answer in answers],
        finish_reason=["length" if place == 1 else "stop" for place in range(len(answers))],
        embedding=[[1.0, 0.0]] * len(answers),
        score=score,
        target=[value / 0.1 for value in score],
        gate=None,
        table=table,
        baseline_kind="self",
        baseline_ids=[f"{prompt_id}/{k}" for k in range(len(answers))],
        baseline_weight=[1 / len(answers)] * len(answers),
        left_out=["loop" if answer == "paper" else "" for answer in answers],
    )


BASELINES = ("previous", "optimistic", "answers")


def plant_baselines(directory: RunDirectory) -> None:
    """One more shard of iteration 1: a cyclic prompt `against KIND` for each of `BASELINES`.

    The last is judged without embeddings. Those of the others stand in a plane, a third of a turn apart, so that each
    beats the next.
    """
    turns = [2 * math.pi * number / 3 for number in range(3)]
    plane = [[math.cos(turn), math.sin(turn)] for turn in turns]
    others = [[0.1, 0.2], [0.3, -0.1], [-0.2, 0.4]]
    rows = []
    for place, kind in enumerate(BASELINES):
        row = rollout_row(f"bb{place:014x}", f"against {kind}", ["rock", "scissors", "stone"], others, "001-abc")
        if kind == "optimistic":
            row = replace(row, table=[own + more for own, more in zip(CYCLE, others, strict=True)])
        rows.append(replace(row, baseline_kind=kind, embedding=None if kind == "answers" else plane))
    write_shard(directory.shard(1, 99), rows)


def plant_start(root: Path, iterations: int, name: str) -> RunDirectory:
    """run.json, config.yaml and the first journal line, with the fields `gpo.journal` writes."""
    directory = RunDirectory(root)
    train = {"select": "best-and-worst", "standardise": 2.0}
    config = {"iterations": iterations, "preference": {"train_on": "gpm"}, "train": train}
    state = {"name": name, "status": "finished", "seed": 5, "config": config, "versions": {"torch": "2.13.0"}}
    state |= {"data_sha256": {}}
    write_json(root / "run.json", {"format_version": FORMAT_VERSION, "started": 1.7e9, "updated": 1.7e9, **state})
    write_text(root / "config.yaml", f"name: tiny\niterations: {iterations}\n")
    directory.record("start", placement={})
    plant_stages(directory, 0, {"canary": 8.0, "answer": 6.0})
    return directory


def plant_stages(directory: RunDirectory, iteration: int, seconds: dict[str, float]) -> None:
    for stage, took in seconds.items():
        directory.record("begin", stage=stage, iteration=iteration)
        directory.record("stage", stage=stage, iteration=iteration, seconds=took)


def plant_evaluation(directory: RunDirectory, iteration: int, judges: tuple[str, ...] = ("gpm", "oracle")) -> None:
    def rate(value: float) -> dict[str, object]:
        return {"win_rate": value, "ci95": [value - 0.05, value + 0.04], "n_prompts": 8}

    start = 0.5 + 0.06 * iteration
    verdict = {"vs_start": rate(start), "vs": {str(n): rate(start - 0.05 * n) for n in range(1, iteration)}}
    write_json(
        directory.evaluation(iteration),
        {
            "iteration": iteration,
            "judges": dict.fromkeys(judges, verdict),
            "length_tokens": 40.0 - iteration,
            "ended_share": 0.6,
            "kl_nats_per_answer": 1.5 * iteration,
            "cyclic_share": 0.1,
            "warnings": [f"{judges[-1]} prefers the longer answer: correlation +0.61 of preference and length"],
            "watch_off": None,
        },
    )
    plant_stages(directory, iteration, STAGE_SECONDS)
    for step in (1, 2, 3):
        loss = 4.0 / (iteration + step)
        append_json_line(directory.metrics, {"iteration": iteration, "step": step, "steps": 3, "loss": loss})


def plant_heldout(directory: RunDirectory, iteration: int, prompts: dict[str, str]) -> None:
    rows = [
        {
            "prompt_id": prompt_id,
            "prompt": [{"role": "user", "content": prompt}],
            "prompt_ids": [1],
            "seed": 1,
            "weight_version": f"{iteration:03d}-abc",
            "completion": [f"held out {iteration}: {prompt[:20]}", "another"],
            "completion_ids": [[1, 2, 3], [1]],
            "finish_reason": ["stop", "length"],
        }
        for prompt_id, prompt in prompts.items()
    ]
    write_json(directory.heldout(iteration), {"format_version": 1, "prompts": rows})


def plant_run(
    root: Path, prompts: int = 30, iterations: int = 2, answers: int = 3, name: str = "tiny", words: int = 35
) -> RunDirectory:
    """A finished run of `prompts` distinct training prompts; the first of iteration 1 is cyclic, the second attacks.

    `words`: of an answer, on average.
    """
    rng = random.Random(0)
    directory = plant_start(root, iterations, name)
    heldout = {f"{16**15 + n:016x}": f"held-out question {n}" for n in range(4)}
    plant_heldout(directory, 0, heldout)
    each = prompts // iterations
    for iteration in range(1, iterations + 1):
        rows = []
        for place in range(each):
            number = (iteration - 1) * each + place
            prompt_id = f"{number * 2654435761 % 2**32:08x}{number:08x}"
            prompt, table = f"prompt {number}: {sentence(rng, 12)}", skew(rng, answers)
            texts = [sentence(rng, rng.randint(words // 2, words + words // 2)) for _ in range(answers)]
            if number == 0:
                prompt, table, texts = "a cyclic zebra", CYCLE, ["rock", "scissors", "paper"]
            if number == 1:
                prompt, texts = f"attack {ATTACK} {ESCAPES}", [ATTACK, ESCAPES, *texts[2:]]
            rows.append(rollout_row(prompt_id, prompt, texts, table, f"{iteration:03d}-{ATTACK}"))
        for shard, start in enumerate(range(0, len(rows), SHARD_PROMPTS)):
            write_shard(directory.shard(iteration, shard), rows[start : start + SHARD_PROMPTS])
        plant_heldout(directory, iteration, heldout)
        plant_evaluation(directory, iteration, ("gpm", ATTACK))
    return directory
