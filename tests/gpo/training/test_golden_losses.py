"""Losses of a fixed training of 20 steps, as they were when this file was written: neutral changes move none of them.

Run: python -m pytest tests/gpo/training/test_golden_losses.py
After a change that is meant to move them:
    python -m tests.gpo.training.test_golden_losses > tests/gpo/training/golden_losses.txt
"""

import sys
import tempfile
from pathlib import Path

import pytest

from tests.gpo.training.small_training import make_rows, make_trainer, steps_of

GOLDEN = Path(__file__).with_name("golden_losses.txt")
RELATIVE = 2e-4
"""float32 sums are added up in another order by another CPU; a mistake shows at 1e-2 and above."""


def losses(folder: Path, layout: str) -> list[float]:
    settings = {"num_train_epochs": 5, "learning_rate": 3e-4, "lr_scheduler_type": "linear", "length_power": 0.5}
    trainer = make_trainer(folder, make_rows(prompts=8), layout=layout, **settings)
    trainer.train()
    return [step["loss"] for step in steps_of(trainer)]


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_the_losses_of_twenty_steps_are_those_on_file(tmp_path: Path, layout: str) -> None:
    expected = [float(line) for line in GOLDEN.read_text("utf-8").split()]
    assert len(expected) == 20 and expected[-1] < expected[0]
    assert losses(tmp_path, layout) == pytest.approx(expected, rel=RELATIVE)


if __name__ == "__main__":
    sys.stdout.write("".join(f"{loss:.7g}\n" for loss in losses(Path(tempfile.mkdtemp()), "shared")))
