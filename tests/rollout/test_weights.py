"""Published weights: the marker, and every way in which a directory is not what was published.

Run: python -m pytest tests/rollout/test_weights.py
"""

import json
import shutil
from pathlib import Path

import pytest

from rollout.errors import RolloutInputError
from rollout.weights import MARKER, content_hash, mark_published, read_marker, verify_published
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("weights") / "model", layers=1, max_shard_size="100KB")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refusal(directory: Path) -> str:
    with pytest.raises(ValueError) as caught:
        verify_published(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def test_a_published_directory_carries_label_and_content_hash(model: Path) -> None:
    marker = mark_published(model, "003")
    assert marker.version == f"003-{content_hash(model)[:12]}" and marker.sha256 == content_hash(model)
    assert verify_published(model) == read_marker(model) == marker
    assert not list(model.glob(".*"))


def test_what_a_marker_speaks_of_is_on_the_disk_before_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []

    def flush(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (model / MARKER).exists()))

    monkeypatch.setattr("os.fsync", flush)
    before = {path.name for path in model.iterdir()}
    mark_published(model, "001")
    assert before <= {name for name, is_marked in flushed if not is_marked}
    assert [name for name, is_marked in flushed if is_marked] == [model.name, model.parent.name]


def test_the_marker_survives_a_copy_and_the_hash_ignores_what_is_not_weights(model: Path, tmp_path: Path) -> None:
    marker = mark_published(model, "001")
    (model / "README.md").write_text("hello")
    shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    assert verify_published(tmp_path / "elsewhere" / "copy") == marker


def test_a_directory_without_a_marker_was_never_published(model: Path) -> None:
    assert read_marker(model) is None
    assert "never published in full" in refusal(model)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1"}', '{"version": "1", "sha256": "2", "more": 3}', "[]"])
def test_a_marker_that_is_torn_or_foreign_counts_as_none(model: Path, content: str) -> None:
    mark_published(model, "001")
    (model / MARKER).write_text(content)
    assert read_marker(model) is None
    assert "never published" in refusal(model)


def test_one_damaged_byte_in_any_shard_or_the_config_is_found(model: Path) -> None:
    mark_published(model, "001")
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 1
    for path in [*shards, model / "config.json"]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        assert "is not the published" in refusal(model)
        path.write_bytes(whole)
    verify_published(model)


def test_a_missing_or_an_additional_shard_is_found(model: Path) -> None:
    mark_published(model, "001")
    last = sorted(model.glob("*.safetensors"))[-1]
    whole = last.read_bytes()
    last.unlink()
    assert "is not the published" in refusal(model)
    last.write_bytes(whole)
    (model / "model-stale.safetensors").write_bytes(whole)
    assert "is not the published" in refusal(model)


def test_weights_of_another_version_under_an_old_marker_are_found(model: Path, tmp_path: Path) -> None:
    mark_published(model, "001")
    other = save_tiny_model(tmp_path / "other", layers=1, seed=1, max_shard_size="100KB")
    for path in other.glob("*.safetensors"):
        shutil.copy(path, model)
    assert "is not the published" in refusal(model)


def test_pickled_weights_are_refused_by_name_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RolloutInputError, match="found pytorch_model.bin only.*save_pretrained"):
        content_hash(tmp_path)
    with pytest.raises(RolloutInputError):
        mark_published(tmp_path, "001")
    assert not (tmp_path / MARKER).exists()


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RolloutInputError, match="found none"):
        content_hash(tmp_path)


def test_the_marker_says_its_format(model: Path) -> None:
    mark_published(model, "001")
    assert json.loads((model / MARKER).read_text())["format_version"] == 1
