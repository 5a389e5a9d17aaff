"""`gpo show` and `gpo report` as a person types them, on a planted run.

Run: python -m pytest tests/gpo/test_cli_show.py
"""

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpo.files import write_json
from rollout.records import write_shard
from tests.gpo.command_line import gpo as typed
from tests.gpo.report_runs import ATTACK, CYCLE, ESCAPES, plant_baselines, plant_run, rollout_row
from tests.gpo.test_terminal import controls

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose names carry escape sequences."""
    return plant_run(tmp_path_factory.mktemp("show"), name=f"run {ESCAPES}").root


def gpo(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpo", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def shown(*words: str | Path) -> str:
    done = gpo("show", *words)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert controls(done.stdout) == [], "nothing steers the terminal"
    return done.stdout


def test_the_overview_has_table_tournament_signs_and_the_way_on(run: Path) -> None:
    text = shown(run)
    assert "62.0% [57.0%, 66.0%]" in text and "win rate of row against column, by gpm" in text
    assert "look  answers cut at the token limit: 33%" in text
    warning = f"look  {ATTACK} prefers the longer answer: correlation +0.61 of preference and length"
    assert f"{warning}\n" in text, "what the run itself warned of, whole and without a limit"
    assert f"gpo show {run} --prompt ID" in text


def test_prompts_are_listed_searched_and_filtered(run: Path) -> None:
    listed = shown(run, "--iteration", "1")
    assert "19 prompts" in listed and "A>B>C>A" in listed and "held out" in listed
    assert "1 prompt\n" in shown(run, "--search", "scissors", "ZEBRA")
    assert "zebra" in shown(run, "--cycles") and "held out" not in shown(run, "--cycles")


def test_one_prompt_shows_answers_table_and_cycle(run: Path) -> None:
    text = shown(run, "--prompt", "00000000")
    assert "answer B: cut (length), 1 token, score -0.0333, target -0.333 nats\nscissors" in text
    assert "answer C: ended by itself, 1 token, score -0.0333, not trained on (loop)" in text
    assert "a cycle: A beats B beats C beats A, each by 0.6 or more" in text
    table = [line.split() for line in text.splitlines() if line.strip()[:1] in ("A", "B", "C") and "answer" not in line]
    assert ["A", "0", "0.8", "-0.6"] in table
    everywhere = shown(run, "--prompt", "1000000000000003")
    assert everywhere.count("---") == 6 and "held out 2" in everywhere
    assert shown(run, "--prompt", "1000000000000003", "--iteration", "1").count("---") == 2


def test_a_prompt_scored_against_a_baseline_shows_its_own_table_or_says_why_there_is_none(tmp_path: Path) -> None:
    directory = plant_run(tmp_path, prompts=2, iterations=1)
    plant_baselines(directory)
    previous = shown(tmp_path, "--prompt", "bb00000000000000")
    assert "score of row against column; baseline: previous\n" in previous
    assert "scores of these answers against each other\n" in previous and "A beats B beats C beats A" in previous
    assert "their judge gave no embeddings" in shown(tmp_path, "--prompt", "bb00000000000002")
    assert "A beats B beats C beats A, each by 0.6" in shown(tmp_path, "--prompt", "bb00000000000001")
    assert "against previous" in shown(tmp_path, "--cycles")


def test_an_attack_in_an_answer_is_shown_as_text(run: Path) -> None:
    text = shown(run, "--prompt", "9e3779b1")
    assert ATTACK in text and "owned" in text and "\x1b" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "zz"], "--prompt zz: is no prompt's id"),
        (["--prompt", "1"], "stands for 7 prompts"),
        (["--iteration", "9"], "--iteration 9: not in"),
        (["--iteration", "x"], "'x' is no iteration"),
    ],
)
def test_a_mistake_is_one_message(run: Path, words: list[str], said: str) -> None:
    done = gpo("show", run, *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_what_is_no_run_is_said_by_both_verbs(tmp_path: Path) -> None:
    for verb in ("show", "report"):
        done = gpo(verb, tmp_path)
        assert done.returncode == 2 and "no run.json in it" in done.stderr


def test_on_a_terminal_the_table_is_coloured_and_long_output_is_paged(run: Path) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "PAGER": "cat", "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "20"}
    with subprocess.Popen(
        [sys.executable, "-m", "gpo", "show", str(run), "--prompt", "0000000000000000"],
        stdout=follower,
        stdin=follower,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    ) as process:
        os.close(follower)
        text = b""
        while chunk := _read(leader):
            text += chunk
        assert process.wait(timeout=60) == 0
    os.close(leader)
    assert b"\x1b[" in text and b"A beats B beats C" in text


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # Linux's word for the end of a terminal
        return b""


def test_a_report_is_written_where_asked_and_says_what_is_in_it(run: Path, tmp_path: Path) -> None:
    done = gpo("report", run, "--output", tmp_path / "page.html", "--prompts", "7")
    assert done.returncode == 0 and "7 of 34 prompts are shown" in done.stdout
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert gpo("report", run).returncode == 0 and (run / "report.html").is_file()


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose directory, status, roles, ids and weights carry escape sequences."""
    root = tmp_path_factory.mktemp("attacker") / f"run {ESCAPES}"
    directory = plant_run(root)
    state = json.loads((root / "run.json").read_text("utf-8"))
    write_json(root / "run.json", state | {"status": ESCAPES})
    row = rollout_row("", "hello", ["rock", "scissors", "paper"], CYCLE, ESCAPES)
    row = replace(row, prompt=[{"role": f"user {ESCAPES}", "content": "hello"}])
    write_shard(directory.shard(1, 1), [replace(row, prompt_id=f"zz{ESCAPES}{number}") for number in range(2)])
    return root


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["show", "ROOT"], 0),
        (["show", "ROOT", "--prompt", f"zz{ESCAPES}1"], 0),
        (["show", "ROOT", "--prompt", "zz"], 2),
        (["show", "ROOT", "--prompt", ESCAPES], 2),
        (["show", "ROOT", "--iteration", "9"], 2),
        (["show", "ROOT", "--no-such-option", ESCAPES], 2),
        (["show", f"ROOT/none {ESCAPES}"], 2),
        (["report", "ROOT"], 0),
        (["report", "ROOT", "--output", "ROOT/run.json/page.html"], 2),
    ],
    ids=lambda value: " ".join(value).encode("unicode_escape").decode() if isinstance(value, list) else str(value),
)
def test_no_name_of_a_run_steers_the_terminal(attacker: Path, words: list[str], status: int) -> None:
    done = typed(attacker.parent, *(word.replace("ROOT", str(attacker)) for word in words))
    assert done.status == status, done
    assert controls(done.printed) == controls(done.said) == []
    assert done.printed or done.said


def test_an_iteration_that_is_asked_for_is_the_only_one_that_is_looked_in(run: Path) -> None:
    assert typed(run, "show", run, "--prompt", "00000000", "--iteration", "1").status == 0
    missing = typed(run, "show", run, "--prompt", "00000000", "--iteration", "2")
    assert missing.status == 2 and "is no prompt's id in iteration 2; `gpo show RUN_DIR --iteration 2`" in missing.said
