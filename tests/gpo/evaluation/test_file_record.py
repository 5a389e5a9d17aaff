"""What a number was made from, by content.

Run: python -m pytest tests/gpo/evaluation/test_file_record.py
"""

import hashlib
from pathlib import Path

import pytest

from gpo.evaluation.file_record import file_record


def test_a_file_is_recorded_by_its_bytes_and_none_by_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi."}\n')
    sha256 = hashlib.sha256(b'{"prompt": "Hi."}\n').hexdigest()
    assert file_record(tmp_path / "a.jsonl") == {"file": str(tmp_path / "a.jsonl"), "sha256": sha256}
    assert file_record(None) is None


def test_a_hub_set_is_recorded_by_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = []
    for name, prompt in (("one", "Hi."), ("two", "Hi."), ("three", "Ho.")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(f'{{"prompt": "{prompt}"}}\n')
        found.append(file_record(Path(f"hub:{tmp_path / name}")))
    one, two, three = (record["sha256"] for record in found if record is not None)
    assert one == two != three
