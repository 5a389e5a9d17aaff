"""What small reads say of a model directory, and how every kind of damage is told.

Run: python -m pytest tests/gpo/test_modelfiles.py
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.errors import UserError
from gpo.modelfiles import (
    context_length,
    has_chat_template,
    parameter_count,
    read_model_config,
    stored_dtype,
    with_compute_dtype,
)
from tests.gpo.small_runs import run_config
from tests.tiny import make_tiny_model, make_tokenizer, save_tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("modelfiles") / "model", layers=1)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_parameters_are_counted_from_the_headers_of_one_file_or_many(original: Path, tmp_path: Path) -> None:
    expected = sum(parameter.numel() for parameter in make_tiny_model(layers=1).parameters())
    assert parameter_count(original) == expected
    sharded = save_tiny_model(tmp_path / "sharded", layers=1, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert parameter_count(sharded) == expected


def test_tied_embeddings_are_counted_once(tmp_path: Path) -> None:
    tied = save_tiny_model(tmp_path / "tied", tied=True, layers=1)
    assert parameter_count(tied) == sum(p.numel() for p in make_tiny_model(tied=True, layers=1).parameters())


def damage(model: Path) -> str:
    with pytest.raises(UserError) as caught:
        parameter_count(model)
    assert str(model) in str(caught.value)
    return str(caught.value)


@given(st.data())
def test_a_file_cut_at_any_length_is_refused_by_name(original: Path, data: st.DataObject) -> None:
    whole = (original / "model.safetensors").read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    cut = original.parent / "cut"
    cut.mkdir(exist_ok=True)
    (cut / "model.safetensors").write_bytes(whole[:length])
    message = damage(cut)
    assert "not a whole safetensors file" in message and "fetch or convert it again" in message


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["__metadata__", "data_offsets", "shape", "w"]), inner, max_size=3)
    ),
)


@given(json_values | st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({"data_offsets": json_values})))
def test_a_header_of_any_other_form_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, header: Any) -> None:
    folder = tmp_path_factory.mktemp("header")
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        assert isinstance(parameter_count(folder), int)
    except UserError as error:
        assert "model.safetensors" in str(error)


def test_a_header_of_an_absurd_length_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert f"header of {1 << 60} bytes" in damage(tmp_path)


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    message = damage(tmp_path)
    assert ".bin" in message and "save_pretrained" in message


def test_a_missing_or_broken_config_is_refused_with_what_to_do(model: Path) -> None:
    assert read_model_config(model)["model_type"] == "llama"
    for content, told in [("{", "not readable"), ("[]", "expected an object"), (None, "expected a Hugging Face model")]:
        (model / "config.json").unlink()
        if content is not None:
            (model / "config.json").write_text(content)
        with pytest.raises(UserError, match=told) as caught:
            read_model_config(model)
        assert str(model) in str(caught.value)


def test_a_config_that_is_not_text_is_refused(model: Path) -> None:
    (model / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not readable"):
        read_model_config(model)


def test_a_chat_template_is_found_in_both_places(model: Path) -> None:
    in_file, config_file = model / "chat_template.jinja", model / "tokenizer_config.json"
    assert in_file.is_file() and has_chat_template(model)
    template = in_file.read_text()
    in_file.unlink()
    assert not has_chat_template(model)
    values = json.loads(config_file.read_text())
    for found, expected in [(template, True), ("", False), (None, False)]:
        config_file.write_text(json.dumps({**values, "chat_template": found}))
        assert has_chat_template(model) is expected


def test_a_tokenizer_config_that_is_missing_or_broken_has_no_template(tmp_path: Path) -> None:
    assert not has_chat_template(tmp_path)
    for content in ("{", "[]", "null"):
        (tmp_path / "tokenizer_config.json").write_text(content)
        assert not has_chat_template(tmp_path)


def test_a_tokenizer_saved_without_a_template_has_none(tmp_path: Path) -> None:
    make_tokenizer(None).save_pretrained(tmp_path)
    assert not has_chat_template(tmp_path)


def test_the_context_length_is_read_where_the_config_says_it() -> None:
    assert context_length({"max_position_embeddings": 512}) == 512
    assert context_length({"text_config": {"max_position_embeddings": 8192}}) == 8192
    assert context_length({}) is None and context_length({"max_position_embeddings": None}) is None
    with pytest.raises(UserError, match="max_position_embeddings is '512', expected a whole number"):
        context_length({"max_position_embeddings": "512"})


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_auto_is_the_stored_type_but_never_emulated_bfloat16(
    model: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {name: value for name, value in read_model_config(model).items() if "dtype" not in name}
    (model / "config.json").write_text(json.dumps(values))
    assert stored_dtype(model) == "float32"
    (model / "config.json").write_text(json.dumps({**values, key: "torch.bfloat16"}))
    asked = {"model": str(model), "dtype": "auto"}
    computed = {}
    for able in (False, True):
        monkeypatch.setattr("reward.compute_type.computes_bfloat16", lambda device, able=able: able)
        computed[able] = with_compute_dtype(run_config(policy=asked), []).policy.dtype
    assert computed == {False: "float32", True: "bfloat16"}
    elsewhere = run_config(policy=asked, cluster={"address": "auto"})
    assert with_compute_dtype(elsewhere, []).policy.dtype == "bfloat16"
    assert with_compute_dtype(run_config(policy={**asked, "dtype": "float32"}), []).policy.dtype == "float32"
    (model / "config.json").write_text(json.dumps({**values, key: "float8_e4m3fn"}))
    with pytest.raises(UserError, match="set policy.dtype"):
        stored_dtype(model)


def test_auto_is_the_type_in_which_the_run_was_begun(model: Path) -> None:
    """Whatever this machine has instructions for: the resolved type is the run's identity, the machine is not."""
    notes: list[str] = []
    asked = run_config(policy={"model": str(model), "dtype": "auto"})
    assert with_compute_dtype(asked, notes, "bfloat16").policy.dtype == "bfloat16"
    assert notes == ["policy.dtype = auto: bfloat16, as the run was begun"]
    given = run_config(policy={"model": str(model), "dtype": "float32"})
    assert with_compute_dtype(given, [], "bfloat16").policy.dtype == "float32"


@pytest.mark.parametrize("begun", [None, "float16"])
def test_what_auto_turns_out_to_be_must_agree_with_the_other_settings(model: Path, begun: str | None) -> None:
    values = {name: value for name, value in read_model_config(model).items() if "dtype" not in name}
    (model / "config.json").write_text(json.dumps({**values, "dtype": "float32" if begun else "float16"}))
    asked = run_config(policy={"model": str(model), "dtype": "auto"}, train={"workers": 2, "sharding": "zero2"})
    with pytest.raises(UserError, match="auto is float16 here: policy.dtype = 'float16' with train.sharding = 'zero2'"):
        with_compute_dtype(asked, [], begun)
