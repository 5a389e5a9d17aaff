"""A push to the hub: once, and whatever fails in it is one message that leaves the run finished.

Run: python -m pytest tests/gpo/test_hub.py
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from gpo.errors import StageError
from gpo.hub import push_when_asked
from tests.gpo.report_runs import plant_run
from tests.gpo.small_runs import run_config


class NoRoute(Exception):
    """As the hub's HTTP client has them: no OSError."""


class Hub:
    """Takes a folder, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.pushed: list[str] = []

    def create_repo(self, *_given: Any, **_more: Any) -> None:
        if self.error is not None:
            raise self.error

    def upload_folder(self, *, repo_id: str, **_more: Any) -> SimpleNamespace:
        self.pushed.append(repo_id)
        return SimpleNamespace(oid="abc", repo_url=f"https://hub.example/{repo_id}")


@pytest.mark.parametrize("error", [NoRoute("no route to host"), OSError("no route to host")], ids=["its own", "system"])
def test_a_hub_out_of_reach_is_one_message_with_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(error))
    config = run_config(tmp_path, iterations=2, hub={"push_to": "me/policy"})
    with pytest.raises(StageError, match="is finished, but hub.push_to = me/policy.*no route to host\n.*to push"):
        push_when_asked(config, plant_run(tmp_path / "run"))


def test_a_checkpoint_is_pushed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    config, directory = run_config(tmp_path, iterations=2, hub={"push_to": "me/policy"}), plant_run(tmp_path / "run")
    for _ in range(2):
        push_when_asked(config, directory)
    assert hub.pushed == ["me/policy"]
    assert directory.journal()[-1]["repository"] == "me/policy"
