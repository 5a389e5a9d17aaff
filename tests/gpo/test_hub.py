"""A push to the hub: once, and whatever fails in it is one message that leaves the run finished.

Run: python -m pytest tests/gpo/test_hub.py
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from gpo.config.reward import RewardTrainConfig
from gpo.config.tracking import HubConfig
from gpo.errors import StageError
from gpo.files import write_json
from gpo.hub import push_reward_model, push_when_asked
from gpo.journal import RunDirectory
from tests.gpo.report_runs import plant_evaluation, plant_run
from tests.gpo.small_runs import run_config
from tests.tiny import save_tiny_model


class NoRoute(Exception):
    """As the hub's HTTP client has them: no OSError."""


class Hub:
    """Takes a folder, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.pushed: list[tuple[str, Path]] = []
        self.files: list[str] = []

    def create_repo(self, *_given: Any, **_more: Any) -> None:
        if self.error is not None:
            raise self.error

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **_more: Any
    ) -> SimpleNamespace:
        self.pushed.append((repo_id, folder_path))
        names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        self.files = list(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        return SimpleNamespace(oid="abc", repo_url=f"https://hub.example/{repo_id}")


def finished_run(root: Path) -> RunDirectory:
    """Two iterations, judged by the judge that `run_config` has."""
    directory = plant_run(root)
    for iteration in (1, 2):
        plant_evaluation(directory, iteration, ("taste",))
    return directory


@pytest.mark.parametrize("error", [NoRoute("no route to host"), OSError("no route to host")], ids=["its own", "system"])
def test_a_hub_out_of_reach_is_one_message_with_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(error))
    config = run_config(tmp_path, iterations=2, hub={"push_to": "me/policy"})
    with pytest.raises(StageError, match="is finished, but hub.push_to = me/policy.*no route to host\n.*to push"):
        push_when_asked(config, finished_run(tmp_path / "run"))


def test_a_checkpoint_is_pushed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    config, directory = run_config(tmp_path, iterations=2, hub={"push_to": "me/policy"}), finished_run(tmp_path / "run")
    for _ in range(2):
        push_when_asked(config, directory)
    assert hub.pushed == [("me/policy", directory.checkpoint(2))]
    last = directory.journal()[-1]
    assert (last["event"], last["repository"], last["iteration"]) == ("pushed", "me/policy", 2)


@pytest.mark.parametrize(
    ("better", "pushed"), [({1: 0.9, 2: 0.6}, [1]), ({1: 0.4, 2: 0.3}, [])], ids=["first", "start"]
)
def test_what_was_chosen_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: dict[int, float], pushed: list[int]
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    config = run_config(tmp_path, iterations=2, hub={"push_to": "me/policy"}, evaluation={"choose": "best"})
    directory = finished_run(tmp_path / "run")
    for iteration, win_rate in better.items():
        evaluation = json.loads(directory.evaluation(iteration).read_text("utf-8"))
        evaluation["judges"]["taste"]["vs_start"]["win_rate"] = win_rate
        write_json(directory.evaluation(iteration), evaluation)
    push_when_asked(config, directory)
    assert [folder for _, folder in hub.pushed] == [directory.checkpoint(iteration) for iteration in pushed]


def test_a_reward_model_is_pushed_once_and_again_when_its_weights_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    output = save_tiny_model(tmp_path / "gpm")
    config = RewardTrainConfig(
        backbone="b", train="t.jsonl", heldout="h.jsonl", output=str(output), hub=HubConfig(push_to="me/gpm")
    )
    for _ in range(2):
        push_reward_model(config)
    assert hub.pushed == [("me/gpm", output)]
    save_tiny_model(output, seed=9)
    push_reward_model(config)
    assert hub.pushed == [("me/gpm", output)] * 2
    push_reward_model(config.model_copy(update={"hub": HubConfig()}))
    assert len(hub.pushed) == 2


def test_nothing_below_the_models_folder_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    output = save_tiny_model(tmp_path / "gpm")
    (output / "training").mkdir()
    (output / "training" / "config.json").write_text("{}")
    push_reward_model(
        RewardTrainConfig(
            backbone="b", train="t.jsonl", heldout="h.jsonl", output=str(output), hub=HubConfig(push_to="me/gpm")
        )
    )
    assert "config.json" in hub.files and not [name for name in hub.files if "/" in name]
