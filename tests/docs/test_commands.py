"""Every command of README and docs runs, on tiny models, or is a make target, an example, or one of a short list.

`docs/gpm.md` has a test of its own. `gpo run` is typed with `--dry-run`; tests/e2e runs it to the end. What needs a
cluster, an engine or a judge elsewhere is parsed here and run by the tests that are named.

Run: python -m pytest tests/docs/test_commands.py
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpo import cli
from gpo.config import RunConfig
from gpo.config.reward import AdapterConfig, RewardTrainConfig, SourceConfig
from gpo.logs import OURS
from tests.docs.workplace import ROOT, make_workplace

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_TEST = {"gpm.md"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_HERE = ("run", "show", "report", "report --watch", "plan", "reward train", "reward score")
RUN_ELSEWHERE = {
    "submit": ("tests/cluster/test_cluster.py", "gpo_submit("),
    "generate": ("tests/gpo/evaluation/test_cli_generate.py", '["generate", "--model"'),
    "eval": ("tests/gpo/evaluation/test_cli_eval.py", 'gpo(place, "eval"'),
    "tournament": ("tests/gpo/evaluation/test_cli_eval.py", 'gpo(place, "tournament"'),
    "doctor": ("tests/gpo/test_doctor.py", "verb._doctor("),
    "reward bench": ("tests/gpo/rewards/test_training.py", 'gpo(folder, "reward", "bench"'),
    "reward cyclic": ("tests/gpo/rewards/test_training.py", 'gpo(folder, "reward", "cyclic"'),
}
"""Verb -> the test that runs it, and the words by which it does."""
PROGRAMS = ("gpo", "make", "python", "cp")
OTHER_PROGRAMS = (
    "git",
    "pip",
    "ray",
    "sbatch",
    "ssh",
    "source",
    "export",
    "hf",
    "tensorboard",
    "trackio",
    "curl",
    "bash",
)
STANDS_FOR = {"DIR": "models/smollm2-135m-instruct"}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text("utf-8")):
        if language in languages:
            yield text


def commands(page: Path) -> list[list[str]]:
    """The words of each command; lines that end in a backslash are joined, comments are left out."""
    found = []
    for text in blocks(page, "sh", "bash", ""):
        for line in text.replace("\\\n", " ").splitlines():
            if line.split()[:1] and line.split()[0] in PROGRAMS:
                words = shlex.split(line, comments=True)
                found.append([re.sub(r"\bDIR\b", STANDS_FOR["DIR"], word) for word in words])
    return found


ALL = [(page, words) for page in PAGES if page.name not in OWN_TEST for words in commands(page)]


def verb_of(words: list[str]) -> str:
    if words[:2] == ["gpo", "reward"]:
        return " ".join(words[1:3])
    return "report --watch" if words[1] == "report" and "--watch" in words else words[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    make_workplace(folder)
    shutil.copyfile(folder / "configs/first_run.yaml", folder / "my.yaml")
    return folder


@pytest.fixture(autouse=True)
def own_log_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `gpo` puts on its loggers in this process goes again."""
    import logging

    yield
    for name in OURS:
        logging.getLogger(name).handlers.clear()


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page.name}:{' '.join(words)[:60]}" for page, words in ALL])
def test_a_command_of_the_documents_works(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, page: Path, words: list[str]
) -> None:
    monkeypatch.chdir(workplace)
    if words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no make target {target}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file() or words[1] == "-m", words
        if words[1].startswith("examples/"):
            assert f'run("{Path(words[1]).name}"' in (ROOT / "tests/examples/test_examples.py").read_text()
    elif words[0] == "cp":
        shutil.copyfile(words[1], words[2])
    else:
        type_gpo(words)


def type_gpo(words: list[str]) -> None:
    verb = verb_of(words)
    if verb not in RUN_HERE:
        assert verb in RUN_ELSEWHERE, f"gpo {verb}: say in RUN_ELSEWHERE which test runs it"
        cli._parse(words[1:])
        return
    if verb == "report --watch":
        watch_and_interrupt(words)
        return
    dry = ["--dry-run"] if verb == "run" and "--dry-run" not in words else []
    # The workplace's runs/quickstart is planted, so it is no run of that config.
    dry += ["--run-dir", "runs/printed"] if verb == "run" and "--run-dir" not in words else []
    scores = Path("scores.jsonl")
    scores.unlink(missing_ok=True)
    assert cli.main([*words[1:], *dry]) == 0


def watch_and_interrupt(words: list[str]) -> None:
    """Start it as a user does, look at the page once, and press Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", *words, "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"<title>tiny" in page.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.startswith("gpo: interrupted; the run was only looked at") and len(said.splitlines()) == 1
    assert "goes on" not in said, "nothing does"


@pytest.mark.parametrize("verb", RUN_ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(verb: str) -> None:
    file, words = RUN_ELSEWHERE[verb]
    assert words in (ROOT / file).read_text("utf-8"), f"{file} does not run gpo {verb}"


def test_the_python_of_moving_here_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs/moving.md", "python")
    names: dict[str, Any] = {"__name__": "moving_page"}
    exec(compile(block, "docs/moving.md", "exec"), names)
    assert names["arguments"].batch_prompts == 2 and callable(names["GPOTrainer"])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_looks_like_a_command_is_one_that_is_known(page: Path) -> None:
    for text in blocks(page, "sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            assert not words or words[0].partition("/")[0] in PROGRAMS + OTHER_PROGRAMS or "=" in words[0], line


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_settings_shown_in_yaml_are_settings(page: Path, tmp_path: Path) -> None:
    from tests.gpo.small_runs import run_values

    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        kind = RewardTrainConfig if page.name == "reward-training.md" else RunConfig
        assert set(values) <= set(kind.model_fields), f"{sorted(values)}: not all are settings of {kind.__name__}"
        if kind is RunConfig:
            RunConfig.model_validate(run_values(tmp_path, **values))


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text("utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_configuration_reference_is_what_the_classes_say() -> None:
    from scripts.config_reference import page

    assert (ROOT / "docs/configuration.md").read_text("utf-8") == page(), "run `make reference`"


def test_reward_settings_named_in_moving_here_exist() -> None:
    text = (ROOT / "docs/moving.md").read_text("utf-8")
    table = text.partition("| `train_rm_general_preference.py` |")[2].partition("\n\n")[0]
    known = {*RewardTrainConfig.model_fields, *(f"adapter.{name}" for name in AdapterConfig.model_fields)}
    known |= {*SourceConfig.model_fields, "group"}
    answers = "".join(row.split(" | ")[-1] for row in table.splitlines() if row.startswith("| "))
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)(?:: [^`]+)?`", answers)
    assert len(named) > 30 and [name for name in named if name not in known] == []


def test_settings_named_in_the_guides_exist() -> None:
    known = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/configuration.md").read_text("utf-8"), re.MULTILINE)
    known += [name.rpartition(".")[0] for name in known]
    for name in ("moving.md", "recipes.md", "reports.md", "operations.md"):
        text = (ROOT / "docs" / name).read_text("utf-8")
        sections = "policy|prompts|baseline|rollout|preference|target|train|evaluation|canary|cluster|tracking|hub"
        for setting in re.findall(rf"`((?:{sections})\.[a-z_.]+)", text):
            assert setting in known, f"{name} names {setting}, which is no setting"
