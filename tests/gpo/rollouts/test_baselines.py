"""Every baseline against a slow double loop that reads nothing but the run's Parquet files.

Run: python -m pytest tests/gpo/rollouts/test_baselines.py
"""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpo.config import BaselineConfig
from gpo.journal import RunDirectory
from gpo.rollouts.baseline_stage import ANSWERS
from gpo.rollouts.baselines import column_weights, older_policies
from gpo.rollouts.scoring import BaselinePart, ShardScorer
from reward import GeneralPreferenceModel
from reward.settings import RewardSettings
from rollout.records import RolloutRow, SampledPrompt, read_baseline, read_shard
from tests.gpo.small_runs import run_config
from tests.tiny import save_tiny_model

TAU, BETA = 0.1, 2.0
PROMPTS, SAMPLES = 5, 3
TEXTS = ("Bread.", "Rain falls on the town.", "No.", "Chess, of course, and tea.", "Trains run late!", "Honey and salt")


@pytest.fixture(scope="module")
def gpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpm")
    save_tiny_model(folder / "backbone")
    settings = RewardSettings.published(4, True)
    model = GeneralPreferenceModel.from_backbone(folder / "backbone", settings, seed=3)
    model.save_pretrained(folder / "gpm", AutoTokenizer.from_pretrained(folder / "backbone"))
    return folder / "gpm"


def samples(version: str, count: int, shift: int) -> list[SampledPrompt]:
    """Answers that differ between policies."""
    return [
        SampledPrompt(
            prompt_id=f"p{number}",
            prompt=[{"role": "user", "content": f"Question {number}?"}],
            prompt_ids=[1, 2],
            seed=number,
            weight_version=version,
            completion=[TEXTS[(shift + number + k) % len(TEXTS)] + f" {k}" for k in range(count)],
            completion_ids=[[k, number] for k in range(count)],
            finish_reason=["stop"] * count,
        )
        for number in range(PROMPTS)
    ]


class Scored:
    """An iteration's baseline and rollout files, written by the scorer's own process class."""

    def __init__(self, folder: Path, source: str, iteration: int, answers: int = 2, **settings: Any) -> None:
        self.directory = RunDirectory(folder / "run")
        self.iteration = iteration
        target = {
            "beta": BETA,
            "tau": TAU,
            "method": settings.pop("method", "gpo"),
            "clamp": settings.pop("clamp", None),
        }
        config = run_config(
            folder,
            prompts={"split": "whole"},
            train={"standardise": settings.pop("standardise", None)},
            baseline=settings,
            target=target,
            preference={"sources": {"it": source}, "train_on": "it"},
        )
        self.config = config
        self.scorer = ShardScorer(config.model_dump(mode="json"), str(folder / "logs"), 1)
        self.shares = (
            {ANSWERS: 1.0}
            if config.baseline.kind == "answers"
            else {f"{policy:03d}": share for policy, share in older_policies(config.baseline, iteration).items()}
        )
        parts = []
        for number, (name, share) in enumerate(self.shares.items()):
            path = self.directory.baseline(iteration, name, 0)
            self.scorer.keep_baseline(samples(f"v{name}", answers, 1 + number), str(path))
            parts.append(BaselinePart(str(path), share))
        self.path = self.directory.shard(iteration, 0)
        self.scorer.score_shard(samples("now", SAMPLES, 0), str(self.path), parts)


def inner(a: list[float], b: list[float], gate: list[float] | None) -> float:
    """<R a, b> block by block, as the paper writes it."""
    total = 0.0
    for block in range(len(a) // 2):
        weight = 1.0 if gate is None else gate[block]
        total += weight * (a[2 * block] * b[2 * block + 1] - a[2 * block + 1] * b[2 * block])
    return total


def slow_scores(
    row: RolloutRow, directory: RunDirectory, iteration: int, shares: dict[str, float]
) -> list[list[tuple[float, float]]]:
    """[K][M]: for each sample, its raw score over every baseline answer, with the answer's weight."""
    pairs: list[list[tuple[float, float]]] = [[] for _ in row.completion]
    assert row.embedding is not None
    own = row.baseline_kind in ("self", "optimistic")
    others = [(name, share) for name, share in shares.items()]
    for i, mine in enumerate(row.embedding):
        if own:
            for theirs in row.embedding:
                pairs[i].append((inner(mine, theirs, row.gate), (2 if others else 1) / len(row.embedding)))
        for name, share in others:
            rows = read_baseline(directory.baseline(iteration, name, 0))
            (older,) = [found for found in rows if found.prompt_id == row.prompt_id]
            assert older.embedding is not None
            gate = None if row.gate is None else [(a + b) / 2 for a, b in zip(row.gate, older.gate or [], strict=True)]
            for theirs in older.embedding:
                sign = -1 if own else 1
                pairs[i].append((inner(mine, theirs, gate), sign * share / len(older.embedding)))
    return pairs


def slow_targets(pairs: Any, kind: str, method: str) -> list[float]:
    targets = []
    for columns in pairs:
        if method == "gpo":
            targets.append(sum(weight * score for score, weight in columns) / TAU / BETA)
        else:
            wins = sum(weight / (1 + math.exp(-score / TAU)) for score, weight in columns)
            targets.append((wins - 0.5) / BETA)
    mean = sum(targets) / len(targets)
    return targets if kind == "self" else [target - mean for target in targets]


CASES = [
    ({"kind": "self"}, 2, 0),
    ({"kind": "initial"}, 3, 1),
    ({"kind": "previous"}, 3, 1),
    ({"kind": "previous", "past": "all", "decay": 0.5}, 4, 3),
    ({"kind": "answers"}, 2, 1),
    ({"kind": "optimistic"}, 1, 0),
    ({"kind": "optimistic"}, 3, 1),
    ({"kind": "optimistic", "past": "all"}, 3, 2),
]


@pytest.mark.parametrize("method", ["gpo", "sppo"])
@pytest.mark.parametrize(("settings", "iteration", "policies"), CASES, ids=lambda value: str(value))
def test_targets_are_those_of_a_slow_double_loop_over_the_files(
    tmp_path: Path, gpm: Path, settings: dict[str, Any], iteration: int, policies: int, method: str
) -> None:
    scored = Scored(tmp_path, f"gpm:{gpm}", iteration, method=method, **settings)
    rows = read_shard(scored.path)
    assert len(rows) == PROMPTS and len(scored.shares) == policies
    for row in rows:
        pairs = slow_scores(row, scored.directory, iteration, scored.shares)
        assert row.target == pytest.approx(slow_targets(pairs, settings["kind"], method), abs=1e-4)
        assert row.score == pytest.approx([sum(w * s for s, w in columns) for columns in pairs], abs=1e-6)
        own = SAMPLES if settings["kind"] in ("self", "optimistic") else 0
        assert len(row.baseline_ids) == len(row.baseline_weight) == len(row.table[0]) == own + 2 * policies
        assert sum(row.baseline_weight) == pytest.approx(1, abs=1e-6)
        assert row.baseline_kind == settings["kind"]
        if settings["kind"] != "self":
            assert sum(row.target) == pytest.approx(0, abs=1e-3)
    named = {identity for row in rows for identity in row.baseline_ids if ":" in identity}
    assert named == {f"v{name}:p{n}/{m}" for name in scored.shares for n in range(PROMPTS) for m in range(2)}


def test_a_function_fills_the_table_against_older_answers_too(tmp_path: Path) -> None:
    taste = tmp_path / "taste.py"
    taste.write_text('"""Longer."""\n\n\ndef prefer(messages, a, b):\n    return (len(a.text) - len(b.text)) / 100\n')
    scored = Scored(tmp_path, f"python:{taste}:prefer", 3, kind="previous")
    older = {row.prompt_id: row for row in read_baseline(scored.directory.baseline(3, "001", 0))}
    for row in read_shard(scored.path):
        assert row.embedding is None and older[row.prompt_id].embedding is None
        for i, mine in enumerate(row.completion):
            for j, theirs in enumerate(older[row.prompt_id].completion):
                assert row.table[i][j] == pytest.approx((len(mine) - len(theirs)) / 100, abs=1e-6)


@pytest.mark.parametrize("restarted", [False, True], ids=["the-same-process", "restarted"])
def test_answers_of_the_data_set_are_embedded_once_in_a_run(tmp_path: Path, gpm: Path, restarted: bool) -> None:
    scored = Scored(tmp_path, f"gpm:{gpm}", 1, kind="answers")
    first = read_baseline(scored.directory.baseline(1, ANSWERS, 0))
    config = scored.config.model_dump(mode="json")
    later = ShardScorer(config, str(tmp_path / "logs"), 1) if restarted else scored.scorer
    asked: list[int] = []
    source = later.source("it")
    read = source.read
    source.read = lambda groups: asked.append(len(groups)) or read(groups)  # type: ignore[func-returns-value,method-assign]
    known = samples(f"v{ANSWERS}", 2, 1)
    later.keep_baseline(known, str(scored.directory.baseline(2, ANSWERS, 0)))
    assert read_baseline(scored.directory.baseline(2, ANSWERS, 0)) == first and sum(asked) == 0
    changed = samples(f"v{ANSWERS}", 2, 2)
    later.keep_baseline(changed, str(scored.directory.baseline(3, ANSWERS, 0)))
    assert sum(asked) == PROMPTS, "other texts are other answers"


def test_a_late_scorer_tells_of_the_shard_that_is_there(tmp_path: Path, gpm: Path) -> None:
    scored = Scored(tmp_path, f"gpm:{gpm}", 1, kind="self")
    before = scored.path.read_bytes()
    told = scored.scorer.score_shard(samples("now", SAMPLES + 1, 0), str(scored.path), [])
    assert scored.path.read_bytes() == before and told.answers == PROMPTS * SAMPLES


def test_older_policies_are_those_before_the_sampling_one() -> None:
    def found(iteration: int, **settings: Any) -> dict[int, float]:
        return older_policies(BaselineConfig(**settings), iteration)

    assert found(1, kind="self") == found(5, kind="answers") == found(1, kind="optimistic") == {}
    assert found(1, kind="initial") == found(4, kind="initial") == {0: 1.0}
    assert found(1, kind="previous") == found(2, kind="previous") == {0: 1.0}
    assert found(5, kind="previous") == found(5, kind="optimistic") == {3: 1.0}
    mixture = found(4, kind="previous", past="all", decay=0.5)
    assert mixture == pytest.approx({0: 1 / 7, 1: 2 / 7, 2: 4 / 7})


def test_weights_of_columns_sum_to_one_whatever_stands_in_them() -> None:
    assert column_weights(4, [], [], own=True).tolist() == [0.25] * 4
    assert column_weights(4, [2, 1], [0.25, 0.75], own=False).tolist() == [0.125, 0.125, 0.75]
    assert column_weights(2, [2], [1.0], own=True).tolist() == [1.0, 1.0, -0.5, -0.5]
    with pytest.raises(ValueError, match="one each"):
        column_weights(2, [2], [], own=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "self", "samples": 3}, "says nothing with kind"),
        ({"kind": "initial", "past": "all"}, "says nothing with kind"),
        ({"kind": "previous", "decay": 0.5}, "past = 'all'"),
        ({"kind": "self", "column": "output"}, "says nothing with kind"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BaselineConfig(**settings)


def test_a_run_against_others_is_never_left_uncentred() -> None:
    assert run_config(baseline={"kind": "answers"}).target.log_z_for("answers") == "mean"
    assert run_config().target.log_z_for("self") == "zero"
    with pytest.raises(ValueError, match="nobody sampled"):
        run_config(baseline={"kind": "answers"}, target={"log_z": "zero"})
    with pytest.raises(ValueError, match="exclude_self"):
        run_config(baseline={"kind": "optimistic"}, target={"exclude_self": True})


def test_targets_are_clamped_in_the_shard_unless_the_trainer_scales_them_first(gpm: Path, tmp_path: Path) -> None:
    def targets(name: str, **settings: Any) -> list[float]:
        scored = Scored(tmp_path / name, f"gpm:{gpm}", 1, kind="self", **settings)
        return [target for row in read_shard(scored.path) for target in row.target]

    plain = targets("plain")
    bound = max(map(abs, plain)) / 2
    assert targets("clamped", clamp=bound) == [max(-bound, min(bound, target)) for target in plain]
    assert targets("scaled", clamp=bound, standardise=2.0) == plain
