"""What each option of a run does to its learner, a rule that ends it, its anchor, and one that dies.

Run: python -m pytest tests/gpo/training/test_learner_options.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpo.files import read_json
from gpo.training import learner
from gpo.training.stage import make_task
from tests.gpo.training.small_iterations import (
    PROMPTS,
    TRAIN,
    iterate,
    largest_gap,
    learn,
    logps_of,
    make_rollouts,
    make_run,
    published,
    report_of,
    steps_of_iteration,
)
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("policy"), layers=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> dict[str, Tensor]:
    """What one iteration with the options of `TRAIN` publishes."""
    _, (task,) = iterate(tmp_path_factory.mktemp("plain"), policy)
    return published(task)


@pytest.mark.parametrize(
    "option",
    [
        {"objective": "dpo", "select": "best-and-worst"},
        {"objective": "dpo", "select": "best-and-worst", "pair_beta": 0.5},
        {"objective": "ipo", "select": "best-and-worst"},
        {"select": "top-and-bottom"},
        {"standardise": 1.5},
        {"length_power": 1.0},
        {"sft": 0.1},
        {"learning_rate": 2e-3},
        {"optimizer": "adamw"},
        {"schedule": "constant"},
        {"schedule": "cosine"},
        {"warmup_ratio": 0.5},
        {"epochs": 1},
        {"batch_prompts": 1},
        {"max_grad_norm": 1e-6},
    ],
    ids=lambda option: ",".join(f"{name}={value}" for name, value in option.items()),
)
def test_another_training_publishes_other_weights(
    tmp_path: Path, policy: Path, plain: dict[str, Tensor], option: dict[str, Any]
) -> None:
    _, (task,) = iterate(tmp_path, policy, **option)
    assert largest_gap(published(task), plain) > 1e-5


@pytest.mark.parametrize(
    "option",
    [
        {"batch_tokens": 40},
        {"layout": "padded"},
        {"layout": "packed"},
        {"gradient_checkpointing": True},
        {"save_steps": 1},
        {"sharding": "zero2"},
        {"anchor_every": 1},
        {"select_n": 2},
        {"stop": {"kl": 1e9, "length_growth": 1e9, "collapse": 1e9}},
    ],
    ids=lambda option: ",".join(f"{name}={value}" for name, value in option.items()),
)
def test_how_and_where_it_is_computed_changes_no_weight(
    tmp_path: Path, policy: Path, plain: dict[str, Tensor], option: dict[str, Any]
) -> None:
    """Nor does what another option alone gives a meaning to, or a limit that is never passed."""
    _, (task,) = iterate(tmp_path, policy, **option)
    assert largest_gap(published(task), plain) <= 1e-5


def test_a_live_reference_is_computed_within_the_steps_and_gives_the_same_weights(
    tmp_path: Path, policy: Path, plain: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpo.training.reference.pass_over", None)  # which computes ahead of them
    _, (task,) = iterate(tmp_path, policy, reference="live")
    assert largest_gap(published(task), plain) <= 1e-5


@pytest.mark.parametrize("rule", ["kl", "length_growth", "collapse"])
def test_a_rule_ends_the_training_and_is_in_the_report(tmp_path: Path, policy: Path, rule: str) -> None:
    rows = [
        replace(row, target=[float(len(answer) - (30 if rule == "collapse" else 10)) for answer in row.completion_ids])
        for row in make_rollouts()
    ]
    run, (task,) = iterate(tmp_path, policy, rows=rows, epochs=20, stop={rule: 1e-3, "window": 1})
    stopped = report_of(task)["stopped"]
    assert stopped["rule"] == rule and stopped["limit"] == 1e-3 and stopped["value"] > 1e-3
    assert report_of(task)["steps"] == stopped["step"] == len(steps_of_iteration(run, 1)) < 20 * PROMPTS // 2
    assert published(task), "what was learned until then"


# A learner that dies


def test_a_learner_that_is_started_again_makes_no_step_and_no_reference_twice(
    tmp_path: Path, policy: Path, plain: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, policy={"model": str(policy)}, train={**TRAIN, "save_steps": 1})
    write_line = learner.append_json_line

    def dies_at_step_3(path: Path, line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise KeyboardInterrupt
        write_line(path, line)

    monkeypatch.setattr(learner, "append_json_line", dies_at_step_3)
    with pytest.raises(KeyboardInterrupt):
        learn(run, 1, make_rollouts())
    training = run.directory.training(1)
    (reference,) = training.glob("reference-*.json")
    assert len(list((training / "steps").glob("checkpoint-*"))) == 2
    monkeypatch.setattr(learner, "append_json_line", write_line)
    monkeypatch.setattr("gpo.training.reference.pass_over", None)
    task = learn(run, 1, make_rollouts())
    assert [line["step"] for line in steps_of_iteration(run, 1)] == [1, 2, 3, 4]
    assert all(torch.equal(value, plain[name]) for name, value in published(task).items())
    assert not (training / "steps").exists(), "only a resume needs them"
    # As when the driver dies before the journal has the stage: all is made again, but for the reference.
    task = learn(run, 1, make_rollouts())
    assert [line["step"] for line in steps_of_iteration(run, 1)] == [1, 2, 3, 4] * 2
    assert all(torch.equal(value, plain[name]) for name, value in published(task).items())
    assert list(training.glob("reference-*.json")) == [reference]


def test_each_iteration_leaves_its_reference_log_probabilities_beside_its_masters(tmp_path: Path, policy: Path) -> None:
    run, _ = iterate(tmp_path, policy, 2)
    rows = make_rollouts()
    given = [(row.prompt_ids, answer) for row in rows for answer in row.completion_ids]
    for iteration, before in ((1, policy), (2, run.directory.checkpoint(1))):
        (file,) = run.directory.training(iteration).glob("reference-*.json")
        kept = torch.tensor(read_json(file)["logps"])
        assert len(kept) == len(given)
        torch.testing.assert_close(kept, logps_of(before, rows), rtol=1e-5, atol=1e-4)


# The anchor of each iteration


@pytest.mark.parametrize(
    ("every", "moved"),
    [(0, [0, 0, 0, 0, 0]), (1, [0, 1, 2, 3, 4]), (2, [0, 0, 2, 2, 4]), (3, [0, 0, 0, 3, 3]), (9, [0, 0, 0, 0, 0])],
)
def test_the_anchor_is_the_policy_or_what_the_last_iteration_that_moved_it_published(
    tmp_path: Path, every: int, moved: list[int]
) -> None:
    run = make_run(tmp_path, iterations=5, train={"pull": 0.5, "anchor_every": every})
    anchors = {0: tmp_path / "policy", **{number: run.directory.checkpoint(number) for number in range(1, 6)}}
    found = [Path(make_task(run, iteration).anchor) for iteration in range(1, 6)]
    assert found == [anchors[number] for number in moved]
