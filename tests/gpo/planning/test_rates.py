"""Time of an iteration from measured rates, by hand.

Run: python -m pytest tests/gpo/planning/test_rates.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import UserError
from gpo.planning.rates import Rates, balanced_pools, given_rates, iteration_time, measured_rates, rates_from
from gpo.settings import dump_yaml
from tests.gpo.small_runs import run_config

LINES: list[dict[str, Any]] = [
    {"event": "shard", "iteration": 1, "shard": 0, "sample_seconds": 6.0, "score_seconds": 1.0},
    {"event": "shard", "iteration": 1, "shard": 1, "sample_seconds": 4.0, "score_seconds": 1.0},
    {"event": "stage", "stage": "generate", "iteration": 1, "seconds": 13.0, "answers": 40, "mean_length_tokens": 25.0},
    {"event": "stage", "stage": "train", "iteration": 1, "seconds": 30.0, "train_seconds": 20.0},
    {"event": "stage", "stage": "publish", "iteration": 1, "seconds": 3.0},
    {"event": "stage", "stage": "evaluate", "iteration": 1, "seconds": 8.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = run_config(tmp_path, rollout={"max_tokens": 64}, evaluation={"samples": 4})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def test_rates_of_a_run_are_its_work_over_its_seconds(run: Path) -> None:
    assert measured_rates(run) == Rates(
        sampled_tokens_a_second=100.0,
        scored_answers_a_second=20.0,
        trained_tokens_a_second=50.0,
        answer_tokens=25.0,
        generate_overhead_seconds=1.0,
        train_start_seconds=10.0,
        publish_seconds=3.0,
        evaluate_seconds_an_answer=1.0,
    )


def test_the_very_run_that_was_measured_is_planned_with_its_own_seconds(run: Path) -> None:
    config = run_config(run, rollout={"max_tokens": 64}, evaluation={"samples": 4})
    time = iteration_time(config, measured_rates(run), prompts=20)
    assert (time.generate, time.train, time.publish, time.evaluate) == (13.0, 30.0, 3.0, 8.0)
    assert time.total == 54.0


def test_an_iteration_that_was_interrupted_has_no_rates_and_the_one_before_it_has(run: Path) -> None:
    later = [{**line, "iteration": 2, "seconds": 1.0} for line in LINES]
    begun = {"event": "begin", "stage": "train", "iteration": 2}
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*LINES, begun, begun, *later]))
    assert measured_rates(run).publish_seconds == 3.0
    found = [{"event": "shard", "iteration": 1, "shard": 2, "found": True}]
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*LINES, *found]))
    with pytest.raises(UserError, match="every one was interrupted"):
        measured_rates(run)


def test_more_prompts_and_more_processes_scale_only_what_they_touch(run: Path) -> None:
    rates = measured_rates(run)
    split = {"shape": "split", "samplers": 4, "scorers": 1}
    config = run_config(run, rollout={"max_tokens": 64}, cluster=split, train={"workers": 2}, evaluation={"samples": 4})
    time = iteration_time(config, rates, prompts=200)
    assert time.sample == pytest.approx(25.0) and time.score == pytest.approx(20.0)
    assert time.generate == pytest.approx(26.0), "the longer of the two, and the overhead"
    assert time.train == pytest.approx(10 + 100.0) and time.publish == 3.0


def test_answers_are_not_longer_than_the_config_allows(run: Path) -> None:
    short = run_config(run, rollout={"max_tokens": 5}, evaluation={"samples": 4})
    time = iteration_time(short, measured_rates(run), prompts=20)
    assert time.sample == pytest.approx(2.0) and time.score == pytest.approx(0.4)


def test_balanced_pools_finish_together() -> None:
    rates = Rates(
        sampled_tokens_a_second=100, scored_answers_a_second=12, trained_tokens_a_second=1, answer_tokens=25.0
    )
    assert balanced_pools(run_config(rollout={"max_tokens": 64}), rates, 8) == (6, 2)
    by_hand = min(((s, 16 - 2 * s) for s in range(1, 8)), key=lambda pair: max(0.25 / pair[0], (1 / 12) / pair[1]))
    engine = {"max_tokens": 64, "engine": {"tensor_parallel": 2}}
    assert balanced_pools(run_config(rollout=engine), rates, 16) == by_hand


def test_given_rates_take_the_place_of_measured_ones(run: Path) -> None:
    found = rates_from(run, ["sampled_tokens_a_second=900"])
    assert found is not None and found.sampled_tokens_a_second == 900 and found.publish_seconds == 3.0
    assert rates_from(None, []) is None


@pytest.mark.parametrize("word", ["speed=3", "publish_seconds", "publish_seconds=fast", "publish_seconds=-1"])
def test_a_rate_that_is_none_is_told_with_all_names(word: str) -> None:
    with pytest.raises(UserError, match=f"--rate {word}: expected NAME=NUMBER with one of sampled_tokens_a_second"):
        given_rates([word])


def test_half_of_the_rates_and_a_run_without_an_iteration_are_mistakes(run: Path) -> None:
    with pytest.raises(UserError, match="needed too, above 0: scored_answers_a_second, trained_tokens_a_second"):
        rates_from(None, ["sampled_tokens_a_second=900"])
    (run / "journal.jsonl").write_text("")
    with pytest.raises(UserError, match="no iteration of this run has rates, none is finished"):
        measured_rates(run)
