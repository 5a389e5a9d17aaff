"""A command that is printed can be typed: what it reads is there, is written by an earlier one, or is the reader's own.

Run: python -m pytest tests/docs/test_printed_files.py
"""

import argparse
import ast
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpo import cli
from gpo.evaluation.model_names import model_names
from tests.docs.test_commands import OWN_TEST, PAGES, commands, verb_of
from tests.docs.workplace import ROOT

YOURS = (
    *("my.yaml", "base", "pairs.jsonl", "more.jsonl", "bench.jsonl"),
    *("runs/answers/mine.json", "runs/answers/mine-ifeval.json", "runs/answers/mine-mt-bench.json"),
    *("alpaca_eval.json", "gpt4_turbo.json", "df_gamed.csv", "ifeval.jsonl"),
    *("llmbar/", "judge_prompts.jsonl", "question.jsonl", "gpt-4.jsonl"),
)
"""What a reader brings: a config, pairs and answers of their own, and files of published benchmarks."""
READ_OPTIONS = (
    *("config", "model", "prompts", "data", "outputs", "baseline", "judge", "run_dir", "rates"),
    *("difficulties", "gamed", "constraints", "grade", "questions", "references"),
)
READ_SETTINGS = ("backbone", "train", "heldout", "policy.model", "prompts.train", "prompts.heldout")
ELSEWHERE = ("hub:", "openai:", "url:")


def checkpoints(run: str | Path, config: str | Path) -> list[str]:
    iterations = yaml.safe_load((ROOT / config).read_text("utf-8"))["iterations"]
    return [f"{run}/iterations/{number:03d}/checkpoint" for number in range(1, iterations + 1)]


BY_QUICKSTART = (
    *("models/smollm2-135m-instruct", "models/quickstart-gpm", "runs/quickstart"),
    *("models/quickstart-preferences/train.jsonl", "models/quickstart-preferences/heldout.jsonl"),
    *checkpoints("runs/quickstart", "configs/quickstart.yaml"),
)


def epilogs(parser: argparse.ArgumentParser) -> list[str]:
    """Those of all verbs below a parser."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                found += [verb.epilog] if verb.epilog else epilogs(verb)
    return found


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    return dict(word.split("=", 1) for word in getattr(options, "overrides", []))


def reads(words: list[str]) -> Iterator[str]:
    if words[0] == "cp":
        yield words[1]
    elif words[0] == "python":
        yield from (word for word in words[1:] if "/" in word)
    elif words[0] == "gpo":
        options = cli._parse(words[1:])
        names = [name for name in READ_OPTIONS if not (verb_of(words) in ("run", "submit") and name == "run_dir")]
        values: list[Any] = [getattr(options, name, None) for name in names]
        values += [value for name, value in settings_of(options).items() if name in READ_SETTINGS]
        for value in values:
            named = value if isinstance(value, list) else [value]
            yield from (str(one).removeprefix("gpm:") for one in named if isinstance(one, str | Path))


def writes(words: list[str], copied: dict[str, str]) -> list[str]:
    """`copied`: a copy of a config -> the config."""
    if words[0] == "cp":
        return [words[2]]
    if words[0] != "gpo":
        return []
    options, verb = cli._parse(words[1:]), verb_of(words)
    if verb == "generate":
        names = options.name or model_names(options.model)
        return [f"{options.output}/{name}.json" for name in names] if len(names) > 1 else [str(options.output)]
    if verb == "reward train":
        return [settings_of(options).get("output", "")]
    if verb == "run" and not options.dry_run:
        config = copied.get(str(options.config), str(options.config))
        if (ROOT / config).is_file():
            own = yaml.safe_load((ROOT / config).read_text("utf-8"))["name"]
            root = options.run_dir or f"runs/{settings_of(options).get('name', own)}"
            return [str(root), *checkpoints(root, config)]
    return []


def missing(printed: list[list[str]]) -> list[str]:
    """What the commands read and nobody wrote before, by the way they are printed in."""
    there, copied, found = [*YOURS, *BY_QUICKSTART], {}, []
    for words in printed:
        for name in reads(words):
            known = (ROOT / name).exists() and not name.startswith(("runs/", "models/"))
            if not (known or name.startswith(ELSEWHERE) or any(fnmatch(one, name) for one in there)):
                found.append(f"{name}, read by `{' '.join(words)}`")
        if words[0] == "cp":
            copied[words[2]] = words[1]
        there += writes(words, copied)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OWN_TEST], ids=lambda page: page.name)
def test_what_a_page_reads_is_written_by_it_before_or_the_readers_own(page: Path) -> None:
    assert missing(commands(page)) == []


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_what_an_example_is_shown_to_read_is_there_after_the_quick_start(example: Path) -> None:
    lines = (ast.get_docstring(ast.parse(example.read_text("utf-8"))) or "").replace("\\\n", " ").splitlines()
    printed = [shlex.split(line) for line in lines if line.strip().startswith("python examples/")]
    assert printed and missing(printed) == []


def test_what_the_help_of_a_verb_reads_is_there_after_the_quick_start() -> None:
    models = ["models/smollm2-135m-instruct", *checkpoints("runs/quickstart", "configs/quickstart.yaml")]
    answers = ["gpo", "generate", "--model", *models, "--prompts", "alpaca_eval.json", "--output", "runs/answers"]
    examples = [shlex.split(epilog.removeprefix("example: ")) for epilog in epilogs(cli._parser())]
    assert len(examples) > 5 and missing([answers, *examples]) == []


def test_a_file_that_nobody_writes_is_found() -> None:
    generated = "gpo generate --model base runs/quickstart/iterations/003/checkpoint --prompts ifeval.jsonl --output a"
    judged = "gpo eval --outputs a/my-003.json --baseline a/base.json --judge gpm:my-gpm --output evaluation"
    found = [line.partition(",")[0] for line in missing([shlex.split(generated), shlex.split(judged)])]
    assert found == ["runs/quickstart/iterations/003/checkpoint", "a/my-003.json", "my-gpm"]
