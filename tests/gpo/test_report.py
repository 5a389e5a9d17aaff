"""What reports are made of: cycles, distributions, the story, samples, signs, and the rules of the page's parts.

Run: python -m pytest tests/gpo/test_report.py
"""

import base64
import gzip
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gpo.config.train import TrainConfig
from gpo.errors import UserError
from gpo.journal import RunDirectory
from gpo.report import samples
from gpo.report.cycles import strongest_cycle
from gpo.report.distributions import correlation_within, histogram, shared_edges
from gpo.report.own_tables import from_embeddings
from gpo.report.page import ASSETS, LAST_SCRIPTS, LIVE_SCRIPT, SCRIPTS, content_policy, render
from gpo.report.samples import prompt_ids, read_prompts
from gpo.report.selection import select_prompts
from gpo.report.signs import watch
from gpo.report.story import open_for_reading, tell, trained_part
from reward.preference import preference_table
from tests.gpo.report_runs import ATTACK, BASELINES, CYCLE, plant_baselines, plant_run

ROOT = Path(__file__).parents[2]
HELD_OUT = [f"{16**15 + number:016x}" for number in range(4)]
"""The held-out prompts of a planted run."""
VENDORED = {
    "d3.min.js": "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
    "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
}
"""d3 7.9.2 and @observablehq/plot 0.6.17, as npm has them."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return plant_run(tmp_path_factory.mktemp("report"))


def test_the_strongest_cycle_names_who_beats_whom() -> None:
    cycle = strongest_cycle(CYCLE)
    assert cycle is not None and cycle.answers == (0, 1, 2) and cycle.weakest == pytest.approx(0.6)
    backwards = strongest_cycle(np.array(CYCLE).T)
    assert backwards is not None and backwards.answers == (0, 2, 1)


@given(npst.arrays(np.float64, st.tuples(*[st.shared(st.integers(0, 6), key="k")] * 2), elements=st.floats(-3, 3)))
def test_the_strongest_cycle_is_that_of_a_slow_search(table: np.ndarray) -> None:
    margin = (table - table.T) / 2
    found = [min(margin[i, j], margin[j, k], margin[k, i]) for i, j, k in itertools.permutations(range(len(table)), 3)]
    best = max(found, default=0.0)
    cycle = strongest_cycle(table)
    assert (cycle is None) == (best <= 0)
    if cycle is not None:
        i, j, k = cycle.answers
        assert cycle.weakest == best == min(margin[i, j], margin[j, k], margin[k, i]) and i == min(cycle.answers)


def test_a_table_against_other_answers_has_no_cycle() -> None:
    assert strongest_cycle([[0.1, 0.2, 0.3]] * 2) is None


def test_the_correlation_within_prompts_ignores_differences_between_them() -> None:
    prompt = np.repeat(np.arange(50), 4)
    rng = np.random.default_rng(0)
    length = 100.0 * prompt + rng.normal(size=200)
    score = -100.0 * prompt + (length - 100.0 * prompt)
    assert correlation_within(prompt, length, score) == pytest.approx(1.0)
    assert correlation_within(prompt, length, np.zeros(200)) is None
    assert correlation_within(np.array([], dtype=np.int64), np.array([]), np.array([])) is None


def test_histograms_on_shared_edges_count_every_answer() -> None:
    groups = [np.array([0.0, 1.0, 1.0]), np.array([2.0])]
    edges = shared_edges(groups, bins=4)
    assert [histogram(group, edges)["counts"] for group in groups] == [[1, 0, 2, 0], [0, 0, 0, 1]]
    assert sum(histogram(np.ones(3), shared_edges([np.ones(3)]))["counts"]) == 3
    assert len(shared_edges([np.array([])])) == 41


def test_the_story_has_evaluations_rollouts_stages_steps_and_tournaments(directory: RunDirectory) -> None:
    story = tell(directory)
    assert [evaluation["iteration"] for evaluation in story["evaluations"]] == [1, 2]
    first, second = story["rollouts"]["iterations"]
    assert first["prompts"] == second["prompts"] == 15 and first["answers"] == 45
    assert first["cut_share"] == pytest.approx(1 / 3)
    assert sum(first["score"]["counts"]) == 45
    assert sum(first["target"]["counts"]) == first["target"]["values"] == 44, "one answer is left out of training"
    assert [step["total"] for step in story["steps"]] == list(range(1, 7))
    stages = [stage["stage"] for stage in story["stages"]]
    assert stages == re.findall(r'once\(run, "(\w+)"', (ROOT / "gpo/loop.py").read_text("utf-8")) + stages[2:7]
    tournament = story["tournaments"][0]
    assert tournament["names"] == ["start", "iteration 1", "iteration 2"]
    rate = np.array(tournament["rate"])
    assert np.allclose(rate + rate.T, 1) and rate[1, 0] == pytest.approx(0.56)


def test_it_is_said_what_training_takes_of_what_was_sampled(directory: RunDirectory) -> None:
    assert tell(directory)["run"]["trained_part"] == (
        "Training takes of each prompt only the best and the worst answer (train.select: best-and-worst), without "
        "those left out. It scales their targets to a root mean square of 2 nats (train.standardise: 2); shown is what "
        "they were before."
    )
    assert trained_part({}) == "Training takes all of these answers (train.select: all), without those left out."
    for select in get_args(TrainConfig.model_fields["select"].annotation):
        assert f"(train.select: {select})" in trained_part({"select": select})


def test_a_stage_that_is_still_open_stands_in_the_story(directory: RunDirectory, tmp_path: Path) -> None:
    at_work = plant_run(tmp_path)
    at_work.record("begin", stage="generate", iteration=3)
    assert [s["stage"] for s in tell(at_work)["stages"] if s["open"]] == ["generate"]
    assert [s for s in tell(directory)["stages"] if s["open"]] == []


def test_a_run_without_a_finished_stage_can_be_looked_at(tmp_path: Path) -> None:
    directory = plant_run(tmp_path, prompts=2, iterations=1)
    for child in ("iterations", "metrics.jsonl", "journal.jsonl"):
        (tmp_path / child).rename(tmp_path / f"no-{child}")
    story = tell(directory)
    assert story["evaluations"] == story["tournaments"] == story["stages"] == watch(story) == []
    assert select_prompts(directory, 5).rule() == "All 0 prompts are shown."
    assert render(story, select_prompts(directory, 5)).startswith("<!doctype html>")


def test_prompts_come_with_their_answers_of_every_iteration(directory: RunDirectory) -> None:
    selection = select_prompts(directory, 100)
    assert selection.rule() == "All 34 prompts are shown." and len(selection.prompts) == 34
    zebra = next(prompt for prompt in selection.prompts if "zebra" in prompt.messages[-1]["content"])
    (appearance,) = zebra.appearances
    assert appearance.cycle == (0, 1, 2) and [answer.tokens for answer in appearance.answers] == [1, 1, 1]
    assert appearance.table == CYCLE
    heldout = next(prompt for prompt in selection.prompts if prompt.messages[-1]["content"] == "held-out question 0")
    assert [(one.kind, one.iteration) for one in heldout.appearances] == [("heldout", n) for n in range(3)]


def test_a_large_run_is_sampled_by_a_rule_that_is_said(directory: RunDirectory) -> None:
    selection = select_prompts(directory, 5)
    every = [prompt.prompt_id for prompt in select_prompts(directory, 100).prompts]
    training = [one for one in every if one not in HELD_OUT]
    assert [prompt.prompt_id for prompt in selection.prompts] == sorted([*HELD_OUT[:3], *training[:2]])
    assert selection.rule().startswith(
        "5 of 34 prompts are shown: by turns a held-out one, which every iteration answers"
    )
    assert "MB" not in selection.rule()
    assert {prompt.prompt_id for prompt in select_prompts(directory, 10).prompts} == {*HELD_OUT, *training[:6]}


def test_text_has_a_limit_too_and_the_rule_names_it(directory: RunDirectory) -> None:
    every = select_prompts(directory, 100).prompts
    size = sum(len(answer.text) for prompt in every for one in prompt.appearances for answer in one.answers)
    half = select_prompts(directory, 100, most_bytes=size // 2)
    assert 8 < len(half.prompts) < 25 and [one for one in every if one in half.prompts] == half.prompts
    assert half.rule().endswith("More than these would be over 0 MB of text.")
    smallest = select_prompts(directory, 100, most_bytes=1)
    assert [prompt.prompt_id for prompt in smallest.prompts] == [HELD_OUT[0]], "one is always shown"
    assert select_prompts(directory, 5, most_bytes=10**9).most_bytes is None


@pytest.mark.parametrize(("width", "gated"), [(1, False), (2, False), (8, False), (8, True)])
def test_the_table_from_stored_embeddings_is_that_of_the_reward_model(width: int, gated: bool) -> None:
    torch.manual_seed(width)
    emb_KD, gate_L = torch.randn(5, width), torch.rand(width // 2) if gated else None
    told = from_embeddings(emb_KD.tolist(), None if gate_L is None else gate_L.tolist())
    assert np.array_equal(told, -told.T)
    assert np.allclose(told, preference_table(emb_KD, gate_L=gate_L).numpy(), atol=1e-6)


def test_answers_scored_against_a_baseline_have_a_table_of_their_own_and_its_cycle(tmp_path: Path) -> None:
    directory = plant_run(tmp_path, prompts=2, iterations=1)
    plant_baselines(directory)
    prompts = {prompt.messages[-1]["content"]: prompt for prompt in select_prompts(directory, 100).prompts}
    ((previous,), (optimistic,), (judged,)) = (prompts[f"against {kind}"].appearances for kind in BASELINES)
    turned = [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]
    assert previous.own_table is not None and np.sign(previous.own_table).tolist() == turned
    assert np.shape(previous.table) == (3, 2) and previous.cycle == (0, 1, 2)
    assert previous.among_themselves() == previous.own_table
    assert optimistic.own_table is None and optimistic.among_themselves() == CYCLE and optimistic.cycle == (0, 1, 2)
    assert judged.own_table is judged.among_themselves() is judged.cycle is None, "a judge without embeddings"


def test_only_what_is_asked_for_is_read(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, bool]] = []
    read_table = samples.read_table

    def read(path: Path, columns: list[str]) -> Any:
        reads.append((path.parts[-3], "completion" in columns))
        return read_table(path, columns)

    monkeypatch.setattr(samples, "read_table", read)
    (zebra,) = read_prompts(directory, ["0000000000000000"])
    assert len(zebra.appearances) == 1
    assert reads == [("001", False), ("001", True), ("002", False)], "of shards without it only the ids"
    reads.clear()
    ids = prompt_ids(directory, 2)
    assert len(ids) == 19 and len(read_prompts(directory, ids, 2)) == 19
    assert {folder for folder, _ in reads} == {"002"}
    heldout = read_prompts(directory, ["1000000000000003"], 1)[0]
    assert [(one.kind, one.iteration) for one in heldout.appearances] == [("heldout", 1)]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    directory = plant_run(tmp_path)
    directory.shard(1, 0).write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="shard-00000.parquet: not a readable rollout shard"):
        select_prompts(directory, 5)


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run.json in it; expected a run directory"):
        open_for_reading(tmp_path)


def test_signs_point_at_length_twins_cuts_and_judges_that_part_ways() -> None:
    row = {"iteration": 1, "length_tokens": 40.0, "cut_share": 0.0, "twin_share": 0.0, "length_score_correlation": 0.1}
    worse = row | {"iteration": 2, "length_tokens": 90.0, "cut_share": 0.5, "twin_share": 0.9}
    judges = {"gpm": {"vs_start": {"win_rate": 0.9}}, "oracle": {"vs_start": {"win_rate": 0.5}}}
    evaluation = {"iteration": 2, "judges": judges, "kl_nats_per_answer": 50.0}
    story: dict[str, Any] = {"rollouts": {"iterations": [row]}, "evaluations": [], "run": {"trained_on": "gpm"}}
    assert [sign.beyond for sign in watch(story)] == [False] * 4
    story |= {"rollouts": {"iterations": [row, worse]}, "evaluations": [evaluation]}
    found = watch(story)
    assert sum(sign.beyond for sign in found) == 5
    assert "+40.0 points" in [sign.value for sign in found]


def test_what_the_run_itself_warned_of_and_that_it_did_not_look_are_signs() -> None:
    off = "no watch for reward hacking: the run trains on gpm, which judges no held-out answers"
    judges = {"oracle": {"vs_start": {"win_rate": 0.6}}}
    evaluation = {"iteration": 1, "judges": judges, "kl_nats_per_answer": 1.0, "warnings": ["odd", "odder"]}
    story: dict[str, Any] = {"rollouts": {"iterations": []}, "run": {"trained_on": "gpm"}}
    kl, *told = watch(story | {"evaluations": [evaluation | {"watch_off": off}]})
    assert not kl.beyond and all(sign.beyond for sign in told)
    assert [sign.sentence() for sign in told] == ["odd", "odder", off]
    assert watch(story | {"evaluations": [evaluation | {"warnings": [], "watch_off": None}]}) == [kl]


def test_nothing_a_model_says_is_in_the_file_as_it_stands(directory: RunDirectory, tmp_path: Path) -> None:
    story = tell(plant_run(tmp_path, name=ATTACK))
    page = render(story, select_prompts(directory, 100))
    assert ATTACK not in page and "&lt;script&gt;window.owned" in page
    packed = re.search(r'<script type="text/plain" id="index">([A-Za-z0-9+/=]*)</script>', page)
    assert packed is not None
    rows = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert any(ATTACK in row["text"] for row in rows), "it is there, packed"


def test_a_live_page_carries_its_version_and_another_does_not(directory: RunDirectory) -> None:
    story, selection = tell(directory), select_prompts(directory, 1)
    assert '<html lang="en" data-version="1:2 &#34;3&#34;">' in render(story, selection, live='1:2 "3"')
    assert '<html lang="en">' in render(story, selection)


def test_the_policy_lets_our_scripts_run_and_nothing_else() -> None:
    scripts = ["let a = 1;", "let b = 2;"]
    policy = content_policy(scripts, live=False)
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe-eval" not in policy
    assert "connect-src 'self'" in content_policy(scripts, live=True)


@pytest.mark.parametrize("name", [name for name in (*SCRIPTS, *LAST_SCRIPTS, LIVE_SCRIPT) if "/" not in name])
def test_our_scripts_never_read_text_as_markup(name: str) -> None:
    text = (ASSETS / name).read_text("utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in text
    assert len(text.splitlines()) <= 300


def test_the_charting_library_is_the_published_one_with_its_licence() -> None:
    for name, sha256 in VENDORED.items():
        assert hashlib.sha256((ASSETS / "vendor" / name).read_bytes()).hexdigest() == sha256
    for licence in ("LICENSE-d3", "LICENSE-plot"):
        assert "Permission to use, copy, modify" in (ASSETS / "vendor" / licence).read_text("utf-8")
