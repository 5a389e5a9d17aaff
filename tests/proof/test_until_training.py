"""What fuzzing runs in the place of a training reads all that a training would, and trains nothing.

Run: python -m pytest tests/proof/test_until_training.py
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gpo.command_line import Outcome
from tests.proof import fuzz_case
from tests.proof.fuzz_rewards import training_rows
from tests.proof.prepared import UNTIL_TRAINING
from tests.proof.row_forms import written
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("until") / "base", layers=1)


def train(folder: Path, backbone: Path, **changes: Any) -> Outcome:
    values = {"backbone": str(backbone), "train": "none.jsonl", "output": str(folder / "out"), "max_length": 128}
    values |= {"cache": str(folder / "cache"), **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    status, printed = fuzz_case.in_process(["reward", "train", str(folder / "config.yaml")], UNTIL_TRAINING)
    return Outcome(status, printed, printed)


@pytest.mark.parametrize("tune", ["heads", "full"])
@pytest.mark.parametrize("loss", ["logistic", "soft", "regression", "margin"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_good_pairs_are_read_to_where_a_training_would_begin(
    tmp_path: Path, backbone: Path, tune: str, loss: str, suffix: str
) -> None:
    source = {"path": str(tmp_path / f"pairs{suffix}")}
    (tmp_path / f"pairs{suffix}").write_bytes(written(training_rows(loss, talks=suffix != ".json"), suffix))
    mixture = {"stream_buffer": 4, "max_steps": 2} if tune == "full" and loss == "soft" else {}
    done = train(tmp_path, backbone, tune=tune, loss=loss, train=[source], heldout=source["path"], **mixture)
    assert done.status == 0, done.printed
    assert not list(tmp_path.rglob("out/*.safetensors")) and not list(tmp_path.rglob("cache/*"))


@pytest.mark.parametrize("tune", ["heads", "full"])
def test_a_bad_pair_and_one_that_the_encoder_refuses_are_told(tmp_path: Path, backbone: Path, tune: str) -> None:
    rows = training_rows("logistic", talks=False)
    for change, told in (({"group": []}, "row 2: group is"), ({"chosen": "half \ud800"}, "surrogate")):
        changed = [rows[0], rows[1] | change, *rows[2:]]
        (tmp_path / "pairs.jsonl").write_bytes(written(changed, ".jsonl"))
        done = train(tmp_path, backbone, tune=tune, train=str(tmp_path / "pairs.jsonl"))
        assert done.status == 2 and told in done.printed, done.printed


def test_a_cyclic_experiment_is_read_to_where_a_training_would_begin(tmp_path: Path, backbone: Path) -> None:
    words = ["reward", "cyclic", f"backbone={backbone}", "--output", str(tmp_path / "out")]
    assert fuzz_case.in_process(words, UNTIL_TRAINING)[0] == 0 and not (tmp_path / "out").exists()
