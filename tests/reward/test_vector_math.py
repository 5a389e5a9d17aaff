"""First calls of vector functions, in processes of their own.

Run: python -m pytest tests/reward/test_vector_math.py
"""

from pathlib import Path

from tests.first_calls import first_calls
from tests.tiny import save_tiny_model


def test_a_gpm_calls_vector_functions_alone_before_its_threads_do(tmp_path: Path) -> None:
    """torch 2.13 with oneMKL 2024.2; pytorch/pytorch issue 188792."""
    save_tiny_model(tmp_path, model_type="llama")
    found = first_calls(
        """
import sys, torch
from reward import GeneralPreferenceModel
from reward.settings import RewardSettings
model = GeneralPreferenceModel.from_backbone(sys.argv[1], RewardSettings.published(4, True), seed=3)
model.backbone(torch.ones((1, 9), dtype=torch.long))
""",
        str(tmp_path),
    )
    assert found == {"cos": 1, "sin": 1}


def test_without_that_a_models_first_call_is_a_whole_sequence(tmp_path: Path) -> None:
    """What the other tests of it see would otherwise be no sign of anything."""
    save_tiny_model(tmp_path, model_type="llama")
    found = first_calls(
        """
import sys, torch
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1])(torch.ones((1, 9), dtype=torch.long))
""",
        str(tmp_path),
    )
    assert min(found.values()) >= 9
