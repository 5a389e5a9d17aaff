"""A restart of batch scoring: the same bytes, or a new beginning that is said.

Run: python -m pytest tests/reward/test_batch_restart.py
"""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward.backend_transformers import TransformersBackend
from reward.batch import BatchSettings, made_from, score_file
from reward.errors import RewardInputError
from reward.fingerprint import weights_fingerprint
from reward.model import GeneralPreferenceModel
from reward.settings import RewardSettings
from tests.reward.batch_files import mixed, pair, save_scorer, write
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
SMALL = BatchSettings(max_length=512, batch_rows=4)
Finished = tuple[Path, bytes]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("batch"), RewardSettings.published(6, True))


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A data file of 11 rows, the last of them bad, and the bytes that scoring it in one go gives."""
    folder = tmp_path_factory.mktemp("finished")
    data = write(folder / "in.jsonl", [*mixed(10), "{broken"])
    score_file(tiny, data, folder / "out.jsonl", SMALL)
    return data, (folder / "out.jsonl").read_bytes()


def first_lines(content: bytes, count: int) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:count])


def plant_part(tiny: Path, data: Path, output: Path, content: bytes, settings: BatchSettings = SMALL) -> None:
    output.with_name(f"{output.name}.part").write_bytes(content)
    side = output.with_name(f"{output.name}.part.meta")
    side.write_text(json.dumps(made_from(tiny, data, settings)), "utf-8")


def rows_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of token rows that back ends are given from now on."""
    seen: list[int] = []
    original = TransformersBackend.hidden_states

    def hidden_states(self: TransformersBackend, rows: Any, *rest: Any) -> Any:
        seen.append(len(rows))
        return original(self, rows, *rest)

    monkeypatch.setattr(TransformersBackend, "hidden_states", hidden_states)
    return seen


@pytest.mark.parametrize("whole_lines", [0, 1, 4, 6, 10, 11])
@pytest.mark.parametrize("torn", [b"", b'{"row": 12, "sco', b"\0\0\0"])
def test_a_restart_ends_with_the_same_bytes(
    whole_lines: int, torn: bytes, tiny: Path, finished: Finished, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, expected = finished
    kept = first_lines(expected, whole_lines)
    plant_part(tiny, data, tmp_path / "out.jsonl", kept + torn)
    with caplog.at_level(logging.INFO):
        summary = score_file(tiny, data, tmp_path / "out.jsonl", SMALL)
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert (summary.rows, summary.failed, summary.first_failed) == (11, 1, [11])
    assert (f"going on after {whole_lines} rows" in caplog.text) == (whole_lines > 0)
    assert not list(tmp_path.glob("out.jsonl.part*"))


def test_a_restart_computes_only_chunks_that_are_not_whole(
    tiny: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, expected = finished
    plant_part(tiny, data, tmp_path / "out.jsonl", first_lines(expected, 9))
    seen = rows_run(monkeypatch)
    score_file(tiny, data, tmp_path / "out.jsonl", SMALL)
    assert len(seen) == 1


def test_a_killed_start_leaves_whole_chunks_and_is_gone_on_from(tiny: Path, finished: Finished, tmp_path: Path) -> None:
    data, expected = finished

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(tiny, data, tmp_path / "out.jsonl", SMALL, progress=stop)
    part = (tmp_path / "out.jsonl.part").read_bytes()
    assert part == first_lines(expected, 4)
    assert not (tmp_path / "out.jsonl").exists()
    score_file(tiny, data, tmp_path / "out.jsonl", SMALL)
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_parquet_output_restarts_too(tiny: Path, finished: Finished, tmp_path: Path) -> None:
    data, expected = finished
    score_file(tiny, data, tmp_path / "whole.parquet", SMALL)
    plant_part(tiny, data, tmp_path / "out.parquet", first_lines(expected, 5))
    score_file(tiny, data, tmp_path / "out.parquet", SMALL)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not [path for path in tmp_path.iterdir() if ".part" in path.suffixes or ".joining" in path.suffixes]


@pytest.mark.parametrize(
    "changed", ["data", "model", "backend", "dtype", "device", "max_length", "batch_rows", "nothing known"]
)
def test_a_part_made_from_something_else_starts_anew_and_says_so(
    changed: str, tiny: Path, finished: Finished, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, expected = finished
    output, wrong = tmp_path / "out.jsonl", b'{"row": 1, "error": "of another start"}\n'
    plant_part(tiny, data, output, wrong)
    side = tmp_path / "out.jsonl.part.meta"
    if changed == "nothing known":
        side.unlink()
        said = "nothing says what its lines were made from, so it starts anew"
    else:
        side.write_text(json.dumps({**json.loads(side.read_text("utf-8")), changed: "7"}), "utf-8")
        said = f"was begun with other values of {changed}, so it starts anew"
    with caplog.at_level(logging.WARNING):
        score_file(tiny, data, output, SMALL)
    assert said in caplog.text
    assert output.read_bytes() == expected


def test_what_a_part_was_made_from_depends_on_contents(tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", [pair(0)])
    before = made_from(tiny, data, SMALL)
    other = save_scorer(tmp_path, RewardSettings.published(6, True, tau=0.2))
    assert made_from(other, data, SMALL)["model"] != before["model"]
    write(data, [pair(1)])
    assert made_from(tiny, data, SMALL)["data"] != before["data"]


def test_a_copied_model_is_the_same_and_one_with_another_tensor_is_not(tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", [pair(0)])
    before = made_from(tiny, data, SMALL)["model"]
    copied = Path(shutil.copytree(tiny, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(copied / "model.safetensors", (0, 0))
    assert made_from(copied, data, SMALL)["model"] == before
    tensors = load_file(copied / "model.safetensors")
    for name in ("value_head.weight", "model.layers.0.mlp.up_proj.weight"):
        save_file({**tensors, name: tensors[name] + 1}, copied / "model.safetensors", metadata={"format": "pt"})
        assert made_from(copied, data, SMALL)["model"] != before


def test_of_a_large_tensor_only_the_beginning_is_read(tmp_path: Path) -> None:
    path, weight = tmp_path / "model.safetensors", torch.zeros(1 << 20)
    save_file({"weight": weight, "z": weight[:1].clone()}, path)
    before = weights_fingerprint(path)
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x")
    assert weights_fingerprint(path) == before
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert weights_fingerprint(path) != before


def test_damaged_weights_have_no_fingerprint(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 40, b"\2\0\0\0\0\0\0\0[]", b'\7\0\0\0\0\0\0\0{"a":1}'):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(RewardInputError, match="cannot be read"):
            weights_fingerprint(tmp_path / "model.safetensors")


def test_a_part_begun_in_another_type_than_auto_means_here_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_tiny_model(tmp_path / "base", layers=1, dtype=torch.bfloat16)
    GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6)).save_pretrained(tmp_path / "half")
    data, output = write(tmp_path / "in.jsonl", mixed(10)), tmp_path / "out.jsonl"

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: True)
    with pytest.raises(KeyboardInterrupt):
        score_file(tmp_path / "half", data, output, SMALL, progress=stop)
    assert json.loads((tmp_path / "out.jsonl.part.meta").read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        score_file(tmp_path / "half", data, output, SMALL)
    assert "was begun with other values of dtype, so it starts anew" in caplog.text
    score_file(tmp_path / "half", data, tmp_path / "wide.jsonl", dataclasses.replace(SMALL, dtype="float32"))
    assert output.read_bytes() == (tmp_path / "wide.jsonl").read_bytes()


def test_a_finished_output_is_replaced_only_when_asked(tiny: Path, finished: Finished, tmp_path: Path) -> None:
    data, expected = finished
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    with pytest.raises(RewardInputError, match=r"out\.jsonl exists already"):
        score_file(tiny, data, output, SMALL)
    assert output.read_text() == "old"
    score_file(tiny, data, output, SMALL, overwrite=True)
    assert output.read_bytes() == expected
