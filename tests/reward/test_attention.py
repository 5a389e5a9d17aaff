"""The attention that is asked for is the one that runs, and it changes no number.

Run: python -m pytest tests/reward/test_attention.py
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama import modeling_llama

from reward.backend_transformers import TransformersBackend
from reward.model import GeneralPreferenceModel
from reward.packed_attention import NAME as PACKED
from reward.scorer import PreferenceScorer
from reward.settings import RewardSettings
from tests.tiny import save_tiny_model

torch.set_num_threads(1)
PROMPT = "Name the sea that lies between Britain and Denmark."
TALKS = [
    [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
    for answer in ("The North Sea.", "Everest", "a grey, cold and shallow sea, which is called North Sea")
]


def save_scorer(folder: Path, model_type: str) -> Path:
    base = save_tiny_model(folder / "base", model_type, tied=model_type == "gemma2")
    model = GeneralPreferenceModel.from_backbone(base, RewardSettings.published(6, True), seed=1)
    model.save_pretrained(folder / "gpm")
    return folder / "gpm"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("gemma2"), "gemma2")


def embedded(
    directory: Path, attention: str | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, set[str | None], int]:
    """Embeddings, the attentions that the model's passes ran with, and how many tokens they computed."""
    scorer = PreferenceScorer.from_pretrained(directory, attn_implementation=attention)
    backbone = scorer.backend.model.backbone  # type: ignore[attr-defined]
    original, names, tokens = backbone.forward, set(), []

    def forward(*args: Any, **keywords: Any) -> Any:
        names.add(backbone.config._attn_implementation)
        tokens.append(keywords["input_ids"].numel())
        return original(*args, **keywords)

    monkeypatch.setattr(backbone, "forward", forward)
    return scorer.embed(TALKS).v_ND, names, sum(tokens)


@pytest.mark.parametrize("model", ["llama", "gemma2"])
def test_eager_runs_when_it_is_asked_for_and_else_rows_are_packed(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = request.getfixturevalue(model)
    plain, names, tokens = embedded(directory, "eager", monkeypatch)
    assert names == {"eager"}
    for attention in (None, "sdpa"):
        found, names, fewer = embedded(directory, attention, monkeypatch)
        # Gemma-2 runs in eager because of its capped logits and not because somebody asked.
        assert names == {PACKED} and fewer < tokens - len(PROMPT)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)


def test_transformers_own_eager_attention_is_what_runs(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = modeling_llama.eager_attention_forward

    def eager(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        return original(*args, **keywords)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager)
    embedded(llama, None, monkeypatch)
    assert not calls
    embedded(llama, "eager", monkeypatch)
    assert calls


def test_any_attention_that_transformers_knows_runs_on_plain_rows(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands for flash attention, which needs a GPU."""
    widths: list[int] = []

    def counted(module: Any, query: Tensor, *rest: Any, **keywords: Any) -> Any:
        widths.append(query.shape[0])
        return sdpa_attention_forward(module, query, *rest, **keywords)

    AttentionInterface.register("gpo_counted", counted)
    found, names, _ = embedded(llama, "gpo_counted", monkeypatch)
    assert names == {"gpo_counted"} and widths
    torch.testing.assert_close(found, embedded(llama, None, monkeypatch)[0], rtol=0, atol=1e-5)


def test_the_choice_is_logged_with_its_reason(llama: Path, gemma2: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = {
        (llama, None): "attention: sdpa over packed rows, because nothing else was asked for",
        (llama, "sdpa"): "attention: sdpa over packed rows, because sdpa was asked for",
        (llama, "eager"): "attention: eager over plain rows, because it was asked for",
        (gemma2, "flex_attention"): "attention: eager over plain rows, because flex_attention was asked for",
        (gemma2, None): "attention: capped softmax over packed rows, because nothing else was asked for",
    }
    for (directory, attention), sentence in said.items():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            PreferenceScorer.from_pretrained(directory, attn_implementation=attention)
        assert sentence in caplog.text


def test_flash_attention_is_never_replaced_by_packed_rows(llama: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(llama)
    assert not TransformersBackend(model, attention="flash_attention_2").shares_beginnings
