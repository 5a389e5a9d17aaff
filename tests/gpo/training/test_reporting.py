"""What TRL and transformers bring is there with GPOTrainer's own numbers and name: trackers, a push to the hub.

Run: python -m pytest tests/gpo/training/test_reporting.py
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.gpo.training.small_training import make_rows, make_trainer, steps_of


def test_tensorboard_has_the_metrics_of_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, report_to="tensorboard", num_train_epochs=2)
    trainer.train()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    for name in ("target_slope", "kl", "loss"):
        expected = {step["step"]: pytest.approx(step[name], rel=1e-6) for step in steps_of(trainer) if name in step}
        assert {event.step: event.value for event in events.Scalars(f"train/{name}")} == expected
        assert len(expected) >= 5  # in the first step nothing has moved, so there is no slope


@pytest.mark.parametrize("column", ["target", "score"])
@pytest.mark.parametrize("option", [{}, {"clamp": 1e-3}, {"standardise": 0.5, "clamp": 0.1}, {"pull": 0.9}])
def test_length_is_held_against_what_answers_were_judged_by_whatever_becomes_of_their_targets(
    tmp_path: Path, column: str, option: dict[str, float]
) -> None:
    rows = [{**row, "anchor_logps": -100.0 * (number % 2)} for number, row in enumerate(make_rows())]
    if column == "score":
        rows = [{**row, "score": float(number % 5)} for number, row in enumerate(rows)]
    trainer = make_trainer(tmp_path, rows, batch_prompts=6, num_train_epochs=2, **option)
    trainer.train()
    pairs = torch.tensor([[row[column], len(row["completion_ids"])] for row in rows])
    expected = pytest.approx(torch.corrcoef(pairs.T)[0, 1].item(), abs=1e-5)
    assert [step["length_score_correlation"] for step in steps_of(trainer)] == [expected] * 2


class Hub:
    """Keeps the text of what is pushed; a file that is no text is its size."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.pushed: dict[str, dict[str, str]] = {}

    def create_repo(self, name: str, **_more: Any) -> SimpleNamespace:
        self.made.append(name)
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id: str, folder_path: str, **_more: Any) -> SimpleNamespace:
        files = [path for path in Path(folder_path).iterdir() if path.is_file()]
        self.pushed[repo_id] = {path.name: path.read_bytes().decode("utf-8", "replace") for path in files}
        return SimpleNamespace(oid="abc")


def test_a_push_takes_the_trained_model_and_a_card_that_names_gpo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_model_id="me/policy")
    trainer.train()
    assert trainer.push_to_hub().oid == "abc"
    assert hub.made == ["me/policy"] and list(hub.pushed) == ["me/policy"]
    files = hub.pushed["me/policy"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
    card = files["README.md"]
    assert "- gpo" in card and "GPO" in card and "2410.02197" in card
