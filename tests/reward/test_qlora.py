"""QLoRA on a CPU: the backbone in 4 bits stays as it is, adapters and heads move, and one plain directory comes out.

Run: python -m pytest tests/reward/test_qlora.py (skipped without bitsandbytes, which `make setup` leaves out)
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward.scorer import PreferenceScorer
from reward.training_settings import AdapterSettings
from tests.reward.training_data import cycle, train
from tests.tiny import save_tiny_model

pytest.importorskip("bitsandbytes")
torch.set_num_threads(1)
QUANTIZED = AdapterSettings(rank=4, quantized=True)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("backbone"))


def test_what_qlora_saves_scores_as_what_was_trained(backbone: Path, tmp_path: Path) -> None:
    report = train(tmp_path, backbone, "gpm", head_learning_rate=1e-2, value_head_dim=8, epochs=30, adapter=QUANTIZED)
    assert report["last_loss"] < 0.2 < report["first_loss"]
    assert report["heldout"]["cyclic_accuracy"] == 1.0
    scorer = PreferenceScorer.from_pretrained(tmp_path / "gpm")
    scores = []
    for row in [*cycle("Show!"), {"instruction": "One or two?", "chosen": "one", "rejected": "two"}]:
        prompt = [{"role": "user", "content": row["instruction"]}]
        scores.append(abs(float(scorer.table(prompt, [row["chosen"], row["rejected"]])[0, 1])))
    assert sum(scores) / len(scores) == pytest.approx(report["heldout"]["mean_abs_score"], abs=2e-2)


def test_weights_that_are_not_adapted_are_those_of_the_backbone_up_to_four_bits(backbone: Path, tmp_path: Path) -> None:
    adapter = AdapterSettings(rank=2, targets=("q_proj",), quantized=True)
    train(tmp_path, backbone, "gpm", epochs=1, adapter=adapter)
    before, after = load_file(backbone / "model.safetensors"), load_file(tmp_path / "gpm" / "model.safetensors")
    assert before.keys() <= after.keys()
    norm, up = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(after[norm], before[norm])
    assert 0 < (after[up] - before[up]).abs().mean() < 0.2 * before[up].abs().mean()
