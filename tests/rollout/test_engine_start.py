"""What comes before a vLLM engine; other tests start real ones.

Run: python -m pytest tests/rollout/test_engine_start.py
"""

from pathlib import Path

from tests.first_calls import first_calls
from tests.tiny import save_tiny_model


def test_vector_functions_are_called_alone_before_an_engine_computes_its_table_of_positions(tmp_path: Path) -> None:
    """vLLM 0.32, whose table is a float32 cosine and sine of all positions, computed at its start."""
    save_tiny_model(tmp_path, layers=1)
    found = first_calls(
        """
import sys, torch, vllm
from pathlib import Path
from rollout.engine import PolicyEngine
from rollout.engine_settings import EngineSettings
vllm.LLM = lambda **_: (torch.cos(torch.ones(9)), torch.sin(torch.ones(9)))
PolicyEngine(Path(sys.argv[1]), EngineSettings(max_model_len=64, threads=1))
""",
        str(tmp_path),
    )
    assert found == {"cos": 1, "sin": 1}
