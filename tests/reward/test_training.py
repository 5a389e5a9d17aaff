"""Training a whole reward model: cycles, every loss and head, continuing, what is left on disk.

Run: python -m pytest tests/reward/test_training.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from reward.best_checkpoints import BestCheckpoints
from reward.checkpoint_files import METRICS_FILE
from reward.errors import RewardInputError
from reward.model import GeneralPreferenceModel
from reward.scorer import PreferenceScorer
from reward.trainer import PairTrainer
from reward.training_log import Heartbeat
from reward.training_settings import AdapterSettings, TrainingSettings
from tests.engine import Engine
from tests.reward.training_data import ANSWERS, same_weights, train, weights
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
PROMPT = [{"role": "user", "content": "Choose."}]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("backbone"))


def test_a_gpm_learns_a_cycle_and_the_scorer_reads_it(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "gpm", epochs=15, evaluate_steps=15)
    assert report["heldout"]["cyclic_accuracy"] == 1.0 and report["last_loss"] < 0.05 < report["first_loss"]
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm")
    table = scorer.table(PROMPT, list(ANSWERS))
    rock, paper, scissors = range(3)
    assert table[paper, rock] > 0 and table[scissors, paper] > 0 and table[rock, scissors] > 0
    before = GeneralPreferenceModel.from_backbone(backbone, scorer.settings)
    moved = weights(tmp_path / "gpm")["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(moved, before.backbone.layers[0].mlp.up_proj.weight)


def test_an_engine_that_ends_autocasts_around_it_still_computes_in_bfloat16(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, types = PairTrainer.compute_loss, set()

    def within(self: PairTrainer, model: Any, *arguments: Any, **named: Any) -> Any:
        layer: Any = self.pair_model.model.backbone.layers[0].mlp
        hook = layer.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
        loss = original(self, Engine(model), *arguments, **named)
        hook.remove()
        return loss

    monkeypatch.setattr(PairTrainer, "compute_loss", within)
    train(tmp_path, backbone, "typed", epochs=1, precision="bfloat16")
    assert types == {torch.bfloat16}


def test_a_scalar_reward_cannot_learn_the_cycle(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "bt", epochs=15, head="bt", value_head_dim=None, gated=False)
    assert report["heldout"]["cyclic_accuracy"] <= 2 / 3 + 1e-9
    assert PreferenceScorer.from_pretrained(tmp_path / "bt").settings.head == "bt"


def test_evaluation_tells_every_metric_and_each_source(backbone: Path, tmp_path: Path) -> None:
    found = train(tmp_path, backbone, "gpm")["heldout"]
    names = "accuracy loss calibration_error mean_abs_score gate_entropy embedding_norm cyclic_share cyclic_accuracy"
    assert set(names.split()) <= found.keys() and found["pairs"] == 4
    low, high = found["accuracy_ci95"]
    assert 0 <= low <= found["accuracy"] <= high <= 1 and high - low > 0.3
    assert 0 < found["gate_entropy"] <= torch.log(torch.tensor(2.0)) + 1e-6


def test_a_sign_of_life_is_given_while_no_step_ends(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[str] = []
    monkeypatch.setattr(Heartbeat, "beat", lambda self: beats.append("beat"))
    train(tmp_path, backbone, "gpm", accumulation=1, max_steps=2, evaluate_steps=None)
    before = len(beats)
    train(tmp_path, backbone, "more", accumulation=1, max_steps=2, evaluate_steps=1)
    assert len(beats) - before > before > 2, "each evaluation gives some"


def test_the_best_checkpoints_are_kept_by_metric(tmp_path: Path) -> None:
    best = BestCheckpoints(tmp_path, "accuracy", True, 2)
    values = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.9, 5: 0.6}
    for step, value in values.items():
        if best.wants(step, value, best.kept()):
            best.add(step, {"accuracy": value}, lambda path: path.mkdir(parents=True))
    assert [(kept.step, kept.value) for kept in best.kept()] == [(2, 0.9), (4, 0.9)]
    best.forget_after(3)
    assert [kept.step for kept in best.kept()] == [2]
    lower = BestCheckpoints(tmp_path / "loss", "loss", False, 1)
    lower.add(1, {"loss": 0.4}, lambda path: path.mkdir(parents=True))
    assert lower.wants(2, 0.3, lower.kept()) and not lower.wants(2, 0.5, lower.kept())
    assert not lower.wants(2, float("nan"), lower.kept())


def test_the_result_is_the_best_step_and_not_the_last(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "gpm", evaluate_steps=2, best_metric="accuracy", keep_best=3, epochs=6)
    kept = json.loads((tmp_path / f"gpm/training/best/step-{report['best_step']:06d}/evaluation.json").read_text())
    assert kept["accuracy"] == report["heldout"]["accuracy"]
    others = [path for path in (tmp_path / "gpm/training/best").iterdir()]
    assert len(others) == 3
    assert all(json.loads((path / "evaluation.json").read_text())["accuracy"] <= kept["accuracy"] for path in others)
    assert same_weights(tmp_path / "gpm", tmp_path / f"gpm/training/best/step-{report['best_step']:06d}")


def test_a_reward_model_goes_on_with_its_heads(backbone: Path, tmp_path: Path) -> None:
    train(tmp_path, backbone, "first", epochs=15)
    again = train(tmp_path, tmp_path / "first", "second", epochs=1, value_head_dim=None, learning_rate=1e-6)
    assert again["first_loss"] < 0.1
    torch.testing.assert_close(
        weights(tmp_path / "second")["value_head.weight"], weights(tmp_path / "first")["value_head.weight"], atol=1e-4,
        rtol=0,
    )  # fmt: skip
    with pytest.raises(RewardInputError, match="new_heads"):
        train(tmp_path, tmp_path / "first", "third", value_head_dim=6)
    train(tmp_path, tmp_path / "first", "fourth", value_head_dim=6, new_heads=True, epochs=1)
    assert weights(tmp_path / "fourth")["value_head.weight"].shape == (6, 64)


def test_a_continued_model_takes_the_policies_that_are_given_and_keeps_the_others(
    backbone: Path, tmp_path: Path
) -> None:
    train(tmp_path, backbone, "first", epochs=1, truncation="prompt", gate_prompt="all_but_last")
    again = {"value_head_dim": None, "gated": None, "epochs": 1}
    train(tmp_path, tmp_path / "first", "second", gate_prompt="first_message", **again)
    settings = GeneralPreferenceModel.from_pretrained(tmp_path / "second").settings
    assert (settings.gate_prompt, settings.truncation, settings.gated) == ("first_message", "prompt", True)
    with pytest.raises(RewardInputError, match="gated True, the training asks for gpm, 8 and False"):
        train(tmp_path, tmp_path / "first", "third", **{**again, "gated": False})


def test_tau_is_learned_saved_and_used(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "gpm", learn_tau=True, tau=0.2, learning_rate=1e-2)
    saved = GeneralPreferenceModel.from_pretrained(tmp_path / "gpm").settings.tau
    assert saved != pytest.approx(0.2) and saved == pytest.approx(report["heldout"]["tau"], rel=1e-6)


def test_a_scaled_gate_is_saved_in_the_published_form(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "gpm", gate_scaling=True)
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm")
    assert scorer.tau == pytest.approx(0.1 / 2) and scorer.settings.card_compatible
    tau = scorer.tau
    rows = [json.loads(line) for line in (tmp_path / "heldout.jsonl").read_text().splitlines()]
    losses = []
    for row in rows:
        prompt = [{"role": "user", "content": row["instruction"]}]
        score = scorer.table(prompt, [row["chosen"], row["rejected"]])[0, 1]
        losses.append(float(torch.nn.functional.softplus(-score / tau)))
    assert sum(losses) / 4 == pytest.approx(report["heldout"]["loss"], abs=1e-4)


@pytest.mark.parametrize("changes", [{"adapter": AdapterSettings(rank=4)}, {"precision": "bfloat16"}])
def test_what_is_saved_scores_as_what_was_trained(backbone: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    report = train(tmp_path, backbone, "gpm", learning_rate=5e-3, **changes)
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm")
    rows = [json.loads(line) for line in (tmp_path / "heldout.jsonl").read_text().splitlines()]
    scores = [
        float(scorer.table([{"role": "user", "content": row["instruction"]}], [row["chosen"], row["rejected"]])[0, 1])
        for row in rows
    ]
    mean = sum(abs(score) for score in scores) / len(scores)
    assert mean == pytest.approx(report["heldout"]["mean_abs_score"], abs=2e-2 if "precision" in changes else 1e-4)


def test_adapters_leave_the_backbone_alone_and_the_heads_move(backbone: Path, tmp_path: Path) -> None:
    train(tmp_path, backbone, "lora", adapter=AdapterSettings(rank=2, targets=("q_proj",)), learning_rate=1e-2)
    before, after = weights(backbone), weights(tmp_path / "lora")
    for name, tensor in after.items():
        if "q_proj" in name:
            assert not torch.equal(tensor, before[name])
            change = tensor - before[name]
            assert int(torch.linalg.matrix_rank(change, atol=1e-5)) <= 2
        elif name in before:
            assert torch.equal(tensor, before[name])
    start = GeneralPreferenceModel.from_backbone(backbone, TrainingSettings(value_head_dim=4).reward_settings())
    assert not torch.equal(after["value_head.weight"], start.heads.value_head.weight)
    with pytest.raises(RewardInputError, match="nothing_proj"):
        train(tmp_path, backbone, "none", adapter=AdapterSettings(targets=("nothing_proj",)))


def test_the_sft_regulariser_lowers_the_loss_of_chosen_answers(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "sft", sft_weight=0.9, epochs=6)
    assert report["first_loss"] > 3 and report["last_loss"] < report["first_loss"] - 1
    head = "lm_head.weight"
    assert not torch.equal(weights(tmp_path / "sft")[head], weights(backbone)[head])


def test_accumulation_and_checkpointing_change_only_the_last_digits(backbone: Path, tmp_path: Path) -> None:
    plain = train(tmp_path, backbone, "plain", max_steps=6, batch_pairs=6)
    pieces = train(tmp_path, backbone, "pieces", max_steps=6, batch_pairs=6, accumulation=2)
    again = train(tmp_path, backbone, "again", max_steps=6, batch_pairs=6, gradient_checkpointing=True)
    for other in (pieces, again):
        assert other["last_loss"] == pytest.approx(plain["last_loss"], abs=1e-4)


def test_a_tracker_that_fails_ends_its_own_copies_only(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")

    class Unreachable(TrainerCallback):
        def on_train_begin(self, *event: Any, **values: Any) -> None:
            raise ConnectionError("no such host")

    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [Unreachable])
    train(tmp_path, backbone, "gpm", save_steps=2, trackers=("wandb", "tensorboard"))
    assert "tracker Unreachable: ConnectionError: no such host" in caplog.text
    # Not among the step checkpoints, which are gone.
    assert list((tmp_path / "gpm/training/tensorboard").glob("events.*"))


def test_a_training_that_diverges_stops_at_that_step_and_publishes_nothing(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardInputError, match=r"step \d+: loss is nan.*lower learning_rate \(1e\+20\)"):
        train(tmp_path, backbone, "gpm", learning_rate=1e20, schedule="constant", warmup_ratio=0.0, save_steps=1)
    assert not (tmp_path / "gpm" / METRICS_FILE).exists() and not (tmp_path / "gpm" / "config.json").exists()
    lines = (tmp_path / "gpm/training/metrics.jsonl").read_text().splitlines()
    assert lines and all("loss" in json.loads(line) for line in lines)


def test_held_out_pairs_without_scores_stop_a_training_too(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardInputError, match="step 1: scores of held-out pairs are not finite"):
        train(tmp_path, backbone, "gpm", learning_rate=1e20, schedule="constant", warmup_ratio=0.0, max_steps=1)


def test_nothing_but_the_result_and_the_metrics_is_left(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "gpm", save_steps=2)
    assert json.loads((tmp_path / "gpm" / METRICS_FILE).read_text()) == json.loads(json.dumps(report))
    assert [path.name for path in (tmp_path / "gpm/training").iterdir()] == ["metrics.jsonl"]
    assert report["data"]["train"] == {
        "train": {
            "used": 9,
            "duplicates": 0,
            "ties": 0,
            "truncated_rows": 0,
            "alike_when_cut": 0,
            "answer_cut_away": 0,
        }  # fmt: skip
    }
