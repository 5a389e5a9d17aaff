"""docs/gpm.md does what it says: its code blocks run in order, and it names what the code has.

Run: python -m pytest tests/docs/test_gpm_page.py
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from reward.model import GeneralPreferenceModel
from reward.settings import POLICIES, RewardSettings
from tests.tiny import save_tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "gpm.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

torch.set_num_threads(1)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    """Of the page, where the code begins."""


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        yield Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)


def run_shell(block: Block, folder: Path) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    for command in block.code.splitlines():
        program, *words = shlex.split(command)
        assert program == "gpo", f"line {block.line}: only gpo's own commands are run"
        done = subprocess.run(
            [sys.executable, "-m", "gpo", *words],
            cwd=folder,
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr


def test_the_blocks_of_the_page_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_model(tmp_path / "base")
    settings = RewardSettings.published(6, True)
    GeneralPreferenceModel.from_backbone(base, settings, seed=1).save_pretrained(tmp_path / "models/quickstart-gpm")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "gpm_page"}
    languages = []
    for block in blocks(PAGE.read_text("utf-8")):
        languages.append(block.language)
        if block.language == "sh":
            run_shell(block, tmp_path)
        else:
            # Empty lines before the code make a traceback point into the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(PAGE), "exec"), namespace)
    assert set(languages) == {"python", "sh"} and languages.count("python") >= 4


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\ny = 2\n```\nb\n```sh\ngpo --help\n```\n"
    assert list(blocks(text)) == [Block("python", "x = 1\ny = 2\n", 3), Block("sh", "gpo --help\n", 8)]


def test_the_page_names_every_policy_and_every_choice() -> None:
    text = PAGE.read_text("utf-8")
    hints = get_type_hints(RewardSettings)
    wanted = {*POLICIES, *(choice for policy in POLICIES for choice in get_args(hints[policy]))}
    assert {"first_message", "reference", "tau"} <= wanted
    assert [name for name in sorted(wanted) if f"`{name}`" not in text] == []


def test_each_of_the_sixteen_defects_has_one_row() -> None:
    rows = re.findall(r"^\| (M\d+) \|([^|]+)\|([^|]+)\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [number for number, *_ in rows] == [f"M{number}" for number in range(1, 17)]
    assert all(len(there.strip()) > 20 and len(here.strip()) > 20 for _, there, here in rows)
