"""Training heads on a frozen backbone: cycles, the cache, determinism, and what is left on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reward.backend_transformers import TransformersBackend
from reward.checkpoint_files import METRICS_FILE
from reward.errors import RewardInputError
from reward.head_training import HeadTrainingSettings, train_heads
from reward.hidden_cache import HiddenStateCache
from reward.model import GeneralPreferenceModel
from reward.pair_evaluation import gate_entropy
from reward.pair_metrics import correct_pairs
from reward.pairs import LoadedPairs, PreferencePair
from reward.preference import preference_score
from reward.scorer import PreferenceScorer
from tests.reward.training_data import pair
from tests.tiny import read_json, save_tiny_model

torch.set_num_threads(1)
ANSWERS = ("rock, of course", "paper is what I say", "scissors!")
QUICK: dict[str, Any] = {"epochs": 150, "learning_rate": 1e-2, "batch_pairs": 4}


def cycle(prompt: str) -> list[PreferencePair]:
    """Paper beats rock, scissors beat paper, rock beats scissors."""
    rock, paper, scissors = ANSWERS
    return [pair(prompt, paper, rock), pair(prompt, scissors, paper), pair(prompt, rock, scissors)]


TRAIN = [*cycle("Choose."), *cycle("What is your hand?")]
HELDOUT = [*cycle("Show your hand!"), pair("One or two?", "one", "two")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(backbone: Path, output: Path, cache: Path, train_pairs: Any = TRAIN, **values: Any) -> Any:
    settings = HeadTrainingSettings(**{**QUICK, **values})
    return train_heads(backbone, train_pairs, HELDOUT, output, settings, cache)


def forward_counter(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass through the back end; whether it packs or pads them is its own affair."""
    seen: list[int] = []
    original = TransformersBackend.hidden_states

    def hidden_states(self: TransformersBackend, rows: Any, *rest: Any) -> Any:
        seen.append(len(rows))
        return original(self, rows, *rest)

    monkeypatch.setattr(TransformersBackend, "hidden_states", hidden_states)
    return seen


def test_a_gpm_learns_the_cycles_that_a_scalar_reward_cannot(backbone: Path, cache: Path, tmp_path: Path) -> None:
    for changes in ({}, {"gated": True}):
        report = train(backbone, tmp_path / "gpm", cache, **changes)
        assert (report.train.accuracy, report.train.cyclic_accuracy) == (1.0, 1.0)
        assert (report.train.cyclic_triples, report.train.decided_triples) == (2, 2)
        assert report.loss < 0.1
    scalar = train(backbone, tmp_path / "bt", cache, head="bt").train
    assert scalar.cyclic_accuracy is not None and scalar.cyclic_accuracy <= 2 / 3


def test_the_twin_reads_the_states_and_runs_no_second_forward_pass(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = forward_counter(monkeypatch)
    cache = tmp_path / "cache"
    report = train(backbone, tmp_path / "gpm", cache, epochs=1)
    assert sum(seen) == report.conversations == 11  # 3 prompts x 3 answers and one pair
    # The order of the pairs is no part of the key.
    train(backbone, tmp_path / "bt", cache, train_pairs=TRAIN[::-1], epochs=1, head="bt")
    assert sum(seen) == 11 and len(list(cache.iterdir())) == 1
    train(backbone, tmp_path / "cut", cache, epochs=1, max_length=30, cut_pairs="keep")
    assert sum(seen) > 11 and len(list(cache.iterdir())) == 2
    other = save_tiny_model(tmp_path / "other", seed=1)
    train(other, tmp_path / "gpm", cache, epochs=1)
    assert len(list(cache.iterdir())) == 3


def test_an_unreadable_cache_file_is_named(backbone: Path, tmp_path: Path) -> None:
    train(backbone, tmp_path / "gpm", tmp_path / "cache", epochs=1)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"torn")
    with pytest.raises(RewardInputError, match="delete it") as raised:
        train(backbone, tmp_path / "gpm", tmp_path / "cache", epochs=1)
    assert file.name in str(raised.value)


def test_progress_counts_every_token_once(backbone: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    settings = HeadTrainingSettings(epochs=1, batch_tokens=100)
    train_heads(backbone, TRAIN, [], tmp_path / "gpm", settings, tmp_path, lambda *call: calls.append(call))
    assert len(calls) > 1 and calls == sorted(calls) and calls[-1][0] == calls[-1][1]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    backbone: Path, cache: Path, tmp_path: Path
) -> None:
    heads = []
    for number, seed in enumerate((3, 3, 4)):
        report = train(backbone, tmp_path / str(number), cache, epochs=2, gated=True, seed=seed)
        heads.append(GeneralPreferenceModel.from_pretrained(report.output_dir).heads.state_dict())
    for name in ("value_head.weight", "prompt_head.weight"):
        assert torch.equal(heads[0][name], heads[1][name])
        assert not torch.equal(heads[0][name], heads[2][name])


@pytest.mark.parametrize(
    "changes", [{}, {"gated": True, "gate_prompt": "all_but_last"}, {"head": "bt"}, {"l2_normalize": False}]
)
def test_the_saved_model_scores_as_the_report_says(
    backbone: Path, cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    report = train(backbone, tmp_path, cache, epochs=3, **changes)
    scorer = PreferenceScorer.from_pretrained(tmp_path)
    assert scorer.settings == HeadTrainingSettings(**changes).reward_settings()
    found = scorer.embed([messages for item in TRAIN for messages in (item.chosen, item.rejected)])
    gate_NL = None if found.gate_NL is None else found.gate_NL[::2]
    score_N = preference_score(found.v_ND[::2], found.v_ND[1::2], gate_NL)
    loss = torch.nn.functional.softplus(-score_N / scorer.tau).mean()
    assert report.loss == pytest.approx(float(loss), abs=1e-4)
    assert report.train.accuracy == sum(correct_pairs(TRAIN, score_N)) / len(TRAIN)


def test_the_backbone_is_saved_unchanged(backbone: Path, cache: Path, tmp_path: Path) -> None:
    train(backbone, tmp_path, cache, epochs=1)
    before = GeneralPreferenceModel.from_backbone(backbone, HeadTrainingSettings().reward_settings())
    after = GeneralPreferenceModel.from_pretrained(tmp_path)
    for name, tensor in before.backbone.state_dict().items():
        assert torch.equal(tensor, after.backbone.state_dict()[name])


@pytest.mark.parametrize(("has_instructions", "computed"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_bfloat16_backbone_runs_as_in_the_scorer_and_is_saved_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_instructions: bool, computed: torch.dtype
) -> None:
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: has_instructions)
    base = save_tiny_model(tmp_path / "base", dtype=torch.bfloat16)
    run: list[Any] = []
    original = TransformersBackend.hidden_states

    def hidden_states(self: TransformersBackend, rows: Any, *rest: Any) -> Any:
        run.append((self.model.backbone.dtype, self.model.backbone.rotary_emb.inv_freq.clone()))
        return original(self, rows, *rest)

    monkeypatch.setattr(TransformersBackend, "hidden_states", hidden_states)
    train(base, tmp_path / "gpm", tmp_path / "cache", epochs=1)
    ((dtype, inv_freq),) = run
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm")
    backbone = scorer.backend.model.backbone  # type: ignore[attr-defined]
    assert dtype == computed == backbone.dtype
    # Rotary frequencies are float32 whatever the weights are, and no cast may round them.
    assert inv_freq.dtype == torch.float32 and torch.equal(inv_freq, backbone.rotary_emb.inv_freq)
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "gpm"))
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16 and torch.equal(after[name], tensor)


def test_the_type_is_that_of_the_device_that_will_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=torch.bfloat16)
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: device != "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def states(self: HiddenStateCache, model: GeneralPreferenceModel, rows: Any, device: str, *rest: Any) -> None:
        raise RewardInputError(f"{model.backbone.dtype} on {device}")

    monkeypatch.setattr(HiddenStateCache, "states", states)
    with pytest.raises(RewardInputError, match=r"torch\.bfloat16 on cuda"):
        train(base, tmp_path / "gpm", tmp_path / "cache", epochs=1)


def test_the_metrics_file_holds_the_report(backbone: Path, cache: Path, tmp_path: Path) -> None:
    loaded = LoadedPairs(tuple(TRAIN), duplicates=2, ties=1)
    report = train(backbone, tmp_path, cache, train_pairs=loaded, epochs=1)
    saved = read_json(tmp_path / METRICS_FILE)
    assert saved["format_version"] == 1 and saved["loss"] == report.loss
    assert saved["settings"]["value_head_dim"] == 8 and saved["settings"]["tau"] == 0.1
    assert (saved["train"]["duplicates"], saved["train"]["ties"], saved["train"]["pairs"]) == (2, 1, 6)
    assert saved["heldout"]["duplicates"] is None and saved["heldout"]["groups"] == 2
    groups = [item.group for item in HELDOUT]
    assert [entry["group"] for entry in saved["heldout_correct"]] == groups
    mean = sum(entry["correct"] for entry in saved["heldout_correct"]) / len(HELDOUT)
    assert mean == saved["heldout"]["accuracy"]


def test_a_reward_model_goes_on_with_its_heads_unless_new_ones_are_asked_for(
    backbone: Path, cache: Path, tmp_path: Path
) -> None:
    first = train(backbone, tmp_path / "first", cache, gated=True)
    again = train(tmp_path / "first", tmp_path / "again", cache, epochs=1, learning_rate=1e-6)
    assert again.loss == pytest.approx(first.loss, abs=1e-3) and again.settings["gated"]
    for name in ("value_head.weight", "prompt_head.weight"):
        before, after = (load_file(tmp_path / one / "model.safetensors")[name] for one in ("first", "again"))
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)
    changes = {"epochs": 1, "learning_rate": 1e-6, "new_heads": True, "value_head_dim": 6}
    fresh = train(tmp_path / "first", tmp_path / "new", cache, **changes)
    assert fresh.settings["value_head_dim"] == 6 and fresh.loss > first.loss + 0.1
    with pytest.raises(RewardInputError, match="new_heads"):
        train(tmp_path / "first", tmp_path / "other", cache, value_head_dim=6)


def test_soft_labels_and_margins_set_the_score(backbone: Path, tmp_path: Path) -> None:
    soft = [pair("p", "a", "b", target_prob=0.2)]
    settings = HeadTrainingSettings(epochs=300, learning_rate=1e-2, head="bt", weight_decay=0.0)
    report = train_heads(backbone, soft, [], tmp_path / "soft", settings, tmp_path / "cache")
    entropy = float(torch.distributions.Bernoulli(torch.tensor(0.2)).entropy())
    assert report.loss == pytest.approx(entropy, abs=1e-3)
    assert report.train.accuracy == 1.0 and report.heldout.accuracy is None
    hard = HeadTrainingSettings(epochs=20, head="bt", loss="logistic")
    report = train_heads(backbone, soft, [], tmp_path / "hard", hard, tmp_path / "cache")
    assert report.train.accuracy == 0.0  # A logistic loss asks for the chosen answer whatever the label says.
    wide = HeadTrainingSettings(epochs=20, head="bt", loss="margin")
    losses = [
        train_heads(backbone, [pair("p", "a", "b", margin=m)], [], tmp_path / "m", wide, tmp_path).loss
        for m in (0.0, 5.0)
    ]
    assert losses[1] > losses[0] + 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"value_head_dim": 7}, "value_head_dim is 7"),
        ({"head": "bt", "value_head_dim": 8}, "width 1 is bt"),
        ({"head": "bt", "gated": True}, "neither gate nor normalisation"),
        ({"truncation": "left"}, "truncation is 'left'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RewardInputError, match=told):
        HeadTrainingSettings(**changes)


def test_inputs_that_cannot_be_trained_on_are_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardInputError, match="no training pairs"):
        train(backbone, tmp_path, tmp_path, train_pairs=[])
    with pytest.raises(RewardInputError, match="is the backbone itself"):
        train(backbone, backbone, tmp_path)
    with pytest.raises(RewardInputError, match=r"training pair 1 has target_prob 0\.7"):
        train(backbone, tmp_path, tmp_path, [pair("p", "a", "b", target_prob=0.7, margin=1)], loss="margin")
    with pytest.raises(RewardInputError, match="no training pair has a margin"):
        train(backbone, tmp_path, tmp_path, loss="margin")


def test_pairs_that_are_cut_alike_are_left_out_and_counted(backbone: Path, tmp_path: Path) -> None:
    long = "word " * 40
    late = pair("p", f"{long} yes", f"{long} no")
    report = train(backbone, tmp_path / "gpm", tmp_path, [*TRAIN, late], epochs=1, max_length=100)
    assert report.data["train"] == {"used": 6, "truncated_rows": 2, "alike_when_cut": 1, "answer_cut_away": 0}
    assert report.train.pairs == 6
    kept = train(backbone, tmp_path / "kept", tmp_path, [late], epochs=1, max_length=100, cut_pairs="keep")
    assert kept.train.pairs == 1
    with pytest.raises(RewardInputError, match="cut_pairs is 'refuse'"):
        train(backbone, tmp_path / "none", tmp_path, [late], epochs=1, max_length=100, cut_pairs="refuse")


def test_held_out_pairs_are_measured_as_a_whole_training_measures_them(
    backbone: Path, cache: Path, tmp_path: Path
) -> None:
    named = [replace(item, source="cycle" if number < 3 else "plain") for number, item in enumerate(HELDOUT)]
    settings = HeadTrainingSettings(**QUICK, gated=True)
    train_heads(backbone, TRAIN, named, tmp_path, settings, cache)
    found = read_json(tmp_path / METRICS_FILE)["heldout"]
    scorer = PreferenceScorer.from_pretrained(tmp_path)
    embedded = scorer.embed([messages for item in HELDOUT for messages in (item.chosen, item.rejected)])
    assert embedded.gate_NL is not None
    score_N = preference_score(embedded.v_ND[::2], embedded.v_ND[1::2], embedded.gate_NL[::2])
    assert found["mean_abs_score"] == pytest.approx(float(score_N.abs().mean()), abs=1e-4)
    assert found["loss"] == pytest.approx(float(torch.nn.functional.softplus(-score_N / scorer.tau).mean()), abs=1e-3)
    assert found["gate_entropy"] == pytest.approx(float(gate_entropy(embedded.gate_NL[::2]).mean()), abs=1e-4)
    assert found["embedding_norm"] > 0 and 0 <= found["calibration_error"] <= 0.5
    assert (found["pairs"], found["cycle/pairs"], found["plain/pairs"]) == (4, 3, 1)
    assert found["cyclic_share"] == (1.0 if found["cyclic_accuracy"] in (0.0, 1.0) else 0.0)
    low, high = found["accuracy_ci95"]
    assert low <= found["accuracy"] <= high
