"""`torch_compile` of TRL's and transformers' arguments: it compiles all but attention by segment."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.gpo.training.small_training import make_trainer


def trained(folder: Path, compiled: bool, layout: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of three steps, and the saved weights."""
    # Traced, but not by inductor, which needs a C++ compiler.
    options = {"torch_compile_backend": "eager"} if compiled else {}
    trainer = make_trainer(folder, layout=layout, torch_compile=compiled, **options)
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule) == compiled
    weights = AutoModelForCausalLM.from_pretrained(folder / "saved", dtype=torch.float32).state_dict()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record], weights


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_a_compiled_policy_takes_the_steps_of_a_plain_one_in_every_layout(tmp_path: Path, layout: str) -> None:
    plain_losses, plain = trained(tmp_path / "plain", False, layout)
    losses, weights = trained(tmp_path / "compiled", True, layout)
    assert losses == pytest.approx(plain_losses, rel=1e-4) and len(losses) == 3
    torch.testing.assert_close(weights, plain, atol=1e-5, rtol=1e-4)
