"""Embeddings of answer files: what is hashed, and what a model that gives no number is told.

Run: python -m pytest tests/gpo/evaluation/test_embedded.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpo.evaluation.embedded import EmbeddingReader, ReaderSettings
from gpo.evaluation.outputs import read_outputs
from tests.gpo.command_line import gpo
from tests.gpo.evaluation.small_evaluation import make_gpm, write_answers


@pytest.fixture(scope="module")
def gpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpm(tmp_path_factory.mktemp("gpm"))


def test_the_weights_are_looked_at_once_for_all_files(
    gpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reward import fingerprint

    files = [read_outputs(write_answers(tmp_path, name)) for name in ("one", "two", "three")]
    readers = [EmbeddingReader(ReaderSettings(model=gpm), tmp_path / "cache") for _ in range(4)]
    alone = [reader.made_from(file) for reader, file in zip(readers, files, strict=False)]
    looked_at: list[Path] = []
    weights_fingerprint = fingerprint.weights_fingerprint

    def counted(path: Path) -> str:
        looked_at.append(path)
        return weights_fingerprint(path)

    monkeypatch.setattr(fingerprint, "weights_fingerprint", counted)
    assert [readers[3].made_from(file) for file in files] == alone, "the names of kept embeddings stay what they were"
    assert sorted(looked_at) == sorted(gpm.glob("*.safetensors"))


def test_embeddings_that_are_not_finite_are_a_failure_that_names_all_their_rows(
    gpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reward import PreferenceScorer

    files = [write_answers(tmp_path, name) for name in ("one", "two")]
    words = ("tournament", "--outputs", *files, "--judge", f"gpm:{gpm}", "--output", tmp_path / "out")
    assert gpo(tmp_path, *words, "--cache", tmp_path / "first").status == 0
    embed = PreferenceScorer.embed

    def poisoned(self: PreferenceScorer, conversations: Any) -> Any:
        found = embed(self, conversations)
        v_ND = found.v_ND.clone()
        for place, turns in enumerate(conversations):
            v_ND[place] /= 0.0 if turns[0]["content"].endswith(("number 2.", "number 6.", "number 7.")) else 1.0
        return replace(found, v_ND=v_ND)

    monkeypatch.setattr(PreferenceScorer, "embed", poisoned)
    found = gpo(tmp_path, *words, "--batch-rows", "4")
    assert found.status == 1 and "one.json, rows 3, 7-8: " in found.said and "not finite" in found.said, found
    assert not (tmp_path / "out" / "tournament.json").exists(), "old numbers do not outlive a start that fails"


def test_a_cache_that_is_no_folder_is_refused(gpm: Path, tmp_path: Path) -> None:
    file = write_answers(tmp_path, "one")
    words = ("--outputs", file, "--baseline", write_answers(tmp_path, "two"), "--judge", f"gpm:{gpm}")
    found = gpo(tmp_path, "eval", *words, "--output", tmp_path / "out", "--cache", file)
    assert found.status == 2 and "--cache" in found.said and "cannot be made a folder" in found.said, found
