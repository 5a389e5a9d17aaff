"""A run's settings as a file and overrides give them, or what is said against them."""

from pathlib import Path
from typing import Any

import pytest

from gpo.config import RunConfig
from gpo.errors import UserError
from gpo.settings import read_settings
from tests.gpo.small_runs import run_values, write_yaml


def read(folder: Path, *overrides: str, **changes: Any) -> RunConfig:
    return read_settings(RunConfig, write_yaml(folder / "run.yaml", run_values(**changes)), overrides)


def refusal(folder: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, *overrides, **changes)
    return str(caught.value)
