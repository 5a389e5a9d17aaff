"""The commands of docs/cluster.md are commands of gpo, and its keys are keys of the config.

Run: python -m pytest tests/docs/test_cluster_page.py
"""

import re
import shlex
from pathlib import Path

from gpo.cli import _parser
from gpo.config import ClusterConfig
from gpo.planning.plan import BASE_GIB, DRIVER_GIB, ENGINE_BASE_GIB, FORWARD_WORK_GIB

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "cluster.md").read_text("utf-8")


def test_every_command_is_taken() -> None:
    commands = re.findall(r"^gpo .*$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True)[1:])


def test_every_key_of_the_cluster_is_a_key() -> None:
    named = set(re.findall(r"cluster\.([a-z_]+)", PAGE)) - {"md"}
    assert named <= set(ClusterConfig.model_fields) and len(named) > 8


def test_the_formulas_have_the_numbers_of_the_code() -> None:
    assert f"sampler      {ENGINE_BASE_GIB:g} + 2·P·b" in PAGE and f"scorer       {BASE_GIB:g} + b·" in PAGE
    assert f"learner      {BASE_GIB:g} + 4·P" in PAGE and f"forward      {BASE_GIB:g} + 4·P" in PAGE
    assert f"+ {FORWARD_WORK_GIB:g} " in PAGE and f"driver and Ray: {DRIVER_GIB:g}\n" in PAGE


def test_every_script_that_is_named_is_there() -> None:
    named = re.findall(r"`(scripts/[^`]+)`", PAGE)
    assert named and all((REPOSITORY / path).exists() for path in named)
