"""Prompts from files: the forms, what a bad row is told, and the split over iterations.

Run: python -m pytest tests/rollout/test_prompts.py
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import RolloutInputError
from rollout.prompts import Prompt, load_prompts, render_prompt_ids, split_over_iterations
from tests.tiny import EOS, GEMMA_TEMPLATE, LLAMA_TEMPLATE, make_tokenizer

ALPACA = Path(__file__).parents[3] / "shared" / "data" / "llamafactory" / "alpaca_en_demo.json"
FORMS = ["list.json", "lines.json", "lines.jsonl", "table.parquet"]
ROWS = [{"prompt": "Name a sea."}, {"prompt": "Nenne ein Meer – auf Deutsch \u2028 bitte."}, {"prompt": " 海 "}]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(folder: Path, rows: list[Any], name: str = "prompts.jsonl") -> str:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "list.json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def loaded(source: str, column: str = "auto") -> list[tuple[tuple[str, str], ...]]:
    return [prompt.messages for prompt in load_prompts(source, column=column).prompts]


def refusal(source: str, column: str = "auto") -> str:
    with pytest.raises(RolloutInputError) as caught:
        load_prompts(source, column=column)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_every_file_form_gives_the_same_prompts_in_file_order(tmp_path: Path, name: str) -> None:
    assert loaded(write(tmp_path, ROWS, name)) == [(("user", row["prompt"]),) for row in ROWS]


@pytest.mark.parametrize("name", FORMS)
def test_messages_lose_the_final_assistant_turn_and_keep_all_others(tmp_path: Path, name: str) -> None:
    talk = [turn("system", "Be brief."), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    rows = [{"messages": [*talk, turn("assistant", "the data set's own answer")]}, {"messages": talk[:2]}]
    expected = tuple((one["role"], one["content"]) for one in talk)
    assert loaded(write(tmp_path, rows, name)) == [expected, expected[:2]]


@pytest.mark.parametrize("name", FORMS)
def test_a_prompt_may_be_messages(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": [turn("system", "s"), turn("user", "u")]}]
    assert loaded(write(tmp_path, rows, name)) == [(("system", "s"), ("user", "u"))]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Sum up.", "input": "A long text."}, "Sum up.\n\nA long text."),
        ({"instruction": "Sum up.", "input": ""}, "Sum up."),
        ({"instruction": "Sum up.", "input": None}, "Sum up."),
        ({"instruction": "Sum up.", "output": "never read"}, "Sum up."),
    ],
)
def test_an_instruction_comes_with_or_without_input(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    assert loaded(write(tmp_path, [row])) == [(("user", text),)]


def test_the_columns_are_tried_in_their_order_and_empty_ones_passed_over(tmp_path: Path) -> None:
    rows = [
        {"messages": [turn("user", "m")], "prompt": "p", "instruction": "i"},
        {"messages": None, "prompt": "p", "instruction": "i"},
        {"messages": None, "prompt": None, "instruction": "i"},
    ]
    assert loaded(write(tmp_path, rows, "table.parquet")) == [(("user", text),) for text in "mpi"]


def test_a_column_of_the_user_is_read_instead_of_the_known_ones(tmp_path: Path) -> None:
    source = write(tmp_path, [{"question": "q", "prompt": "p"}])
    assert loaded(source, column="question") == [(("user", "q"),)]
    message = refusal(source, column="questoin")
    assert "row 1" in message and "'questoin'" in message and "'question'" in message


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    for name in FORMS[:3]:
        path = Path(write(tmp_path, ROWS, name))
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(loaded(str(path))) == 3


BAD_ROWS: list[tuple[Any, str]] = [
    ({"text": "no known column"}, "no prompt"),
    ({"prompt": ""}, "empty"),
    ({"prompt": " \n\t"}, "empty"),
    ({"prompt": 5}, "found int"),
    ({"prompt": []}, "list of messages"),
    ({"messages": [turn("assistant", "only an answer")]}, "empty"),
    ({"messages": [turn("robot", "hi")]}, "system, user, assistant"),
    ({"messages": [{"role": "user", "content": None}]}, "text `content`"),
    ({"messages": ["hi"]}, "a message needs"),
    ({"instruction": 5}, "must be text"),
    ({"instruction": "a", "input": ["b"]}, "must be text"),
    ({"instruction": ""}, "empty"),
    ("a bare string", "expected an object"),
    (None, "expected an object"),
    ({"prompt": "half a pair: \ud83d"}, "surrogate"),
]


@pytest.mark.parametrize(("row", "told"), BAD_ROWS)
@pytest.mark.parametrize("name", ["list.json", "lines.jsonl"])
def test_a_bad_row_is_refused_with_file_number_and_reason(tmp_path: Path, name: str, row: Any, told: str) -> None:
    path = tmp_path / name
    rows = [*ROWS[:2], row]
    text = json.dumps(rows) if name == "list.json" else "\n".join(json.dumps(one) for one in rows)
    path.write_text(text, "utf-8")
    message = refusal(str(path))
    assert told in message and str(path) in message
    assert "row 3" in message or "line 3" in message


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a"}\n{"prompt": "b"\n', "utf-8")
    assert f"{lines}, line 2: not valid JSON" in refusal(str(lines))
    whole = tmp_path / "list.json"
    whole.write_text('[{"prompt": "a"},\n {"prompt": "b"}\n', "utf-8")
    assert "line 3: not valid JSON" in refusal(str(whole))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"prompt": ' + "[" * 100_000])
def test_json_that_the_parser_gives_up_on_is_refused_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.json"
    path.write_text(text, "utf-8")
    assert "not valid JSON" in refusal(str(path))


@pytest.mark.parametrize("name", FORMS)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / name)
    else:
        (tmp_path / name).write_text("[]" if name == "list.json" else "\n \n", "utf-8")
    assert "there is no row in it" in refusal(str(tmp_path / name))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name, told in [("a.json", "no row"), ("a.jsonl", "no row"), ("a.parquet", "not a readable Parquet file")]:
        (tmp_path / name).write_bytes(b"")
        assert told in refusal(str(tmp_path / name))


def test_a_damaged_parquet_file_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    source = Path(write(tmp_path, [{"prompt": f"prompt number {n}"} for n in range(500)], "table.parquet"))
    whole = source.read_bytes()
    for start in range(4, len(whole) - 8, len(whole) // 12):
        source.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
        try:
            load_prompts(str(source))  # damage in statistics or padding may go unseen
        except RolloutInputError as error:
            assert str(source) in str(error)
    source.write_bytes(whole[: len(whole) // 2])
    assert "not a readable Parquet file" in refusal(str(source))


def test_a_missing_file_a_folder_and_an_unknown_ending_are_told_apart_from_each_other(tmp_path: Path) -> None:
    for source in (tmp_path / "none.jsonl", tmp_path):
        message = refusal(str(source))
        assert "no such file" in message and "hub:" in message
    (tmp_path / "prompts.csv").write_text("prompt\nhi\n")
    assert "'.csv' is not known; expected .json, .jsonl or .parquet" in refusal(str(tmp_path / "prompts.csv"))


def test_a_hub_set_that_is_made_by_a_script_is_refused_with_a_way_on(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").touch()
    message = refusal(f"hub:{tmp_path}")
    assert "cannot be read (Dataset scripts are no longer supported" in message and "download the file" in message


def test_text_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "Müller"}\n'.encode("latin-1"))
    message = refusal(str(path))
    assert "not UTF-8" in message and "byte 13" in message


def test_duplicates_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"messages": [turn("user", "a"), turn("assistant", "b")]}, {"prompt": "b"}]
    rows += [{"instruction": "a"}, {"prompt": "a "}]
    found = load_prompts(write(tmp_path, rows))
    assert [prompt.messages[0][1] for prompt in found.prompts] == ["a", "b", "a "]
    assert found.duplicates == 2


def test_an_id_depends_on_roles_and_content_alone(tmp_path: Path) -> None:
    first = load_prompts(write(tmp_path, [{"prompt": "a", "more": 1}, {"prompt": "b"}])).prompts
    second = load_prompts(write(tmp_path, [{"messages": [turn("user", "b")]}], "other.json")).prompts
    assert first[1].prompt_id == second[0].prompt_id != first[0].prompt_id
    assert first[0].prompt_id == "050d8ef56e888db0"  # a change makes old run directories unreadable
    system = load_prompts(write(tmp_path, [{"messages": [turn("system", "b")]}])).prompts
    assert system[0].prompt_id != second[0].prompt_id


@given(st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip())), min_size=1, max_size=8))
def test_any_text_survives_any_file_form(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    expected = [(("user", text),) for text in dict.fromkeys(texts)]
    for name in FORMS:
        assert loaded(write(folder, [{"prompt": text} for text in texts], name)) == expected


@given(st.binary(max_size=200))
def test_any_bytes_give_prompts_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for name in ("any.json", "any.parquet"):
        path = tmp_path_factory.mktemp("bytes") / name
        path.write_bytes(content)
        try:
            assert load_prompts(str(path)).prompts
        except RolloutInputError as error:
            assert str(path) in str(error)


@pytest.mark.skipif(not ALPACA.is_file(), reason=f"{ALPACA} is absent")
def test_the_published_alpaca_demo_is_read_whole() -> None:
    found = load_prompts(str(ALPACA))
    raw = json.loads(ALPACA.read_text("utf-8"))
    assert len(found.prompts) + found.duplicates == len(raw)
    texts = {row["instruction"] + ("\n\n" + row["input"] if row["input"].strip() else "") for row in raw}
    assert texts == {prompt.messages[0][1] for prompt in found.prompts}


@pytest.mark.parametrize("template", [LLAMA_TEMPLATE, GEMMA_TEMPLATE])
def test_a_rendered_prompt_has_one_start_token_and_ends_where_the_answer_begins(template: str) -> None:
    tokenizer = make_tokenizer(template)
    prompt = Prompt("id", (("user", "Hi"), ("assistant", "Hello"), ("user", "So?")))
    ids = render_prompt_ids(tokenizer, prompt)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    text = tokenizer.decode(ids)
    assert text.endswith(("<|start|>assistant<|end|>\n\n", "<|start|>model\n")) and not text.endswith(EOS)


def some_prompts(count: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(str(number), (("user", str(number)),)) for number in range(count))


@given(st.integers(1, 40), st.integers(1, 6), st.none() | st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_a_split_is_disjoint_or_whole_of_equal_parts_and_repeatable(
    count: int, iterations: int, per_iteration: int | None, disjoint: bool, seed: int
) -> None:
    prompts = some_prompts(count)

    def split(all_prompts: tuple[Prompt, ...], seed: int) -> list[tuple[Prompt, ...]]:
        return split_over_iterations(
            all_prompts, iterations=iterations, per_iteration=per_iteration, disjoint=disjoint, seed=seed
        )

    wanted = per_iteration or (count // iterations if disjoint else count)
    if wanted * (iterations if disjoint else 1) > count or wanted < 1:
        with pytest.raises(RolloutInputError, match=rf"there are {count}; lower prompts.per_iteration"):
            split(prompts, seed)
        return
    parts = split(prompts, seed)
    assert [len(part) for part in parts] == [wanted] * iterations
    for part in parts:
        assert len(set(part)) == len(part) and set(part) <= set(prompts)
    if disjoint:
        assert len({prompt for part in parts for prompt in part}) == wanted * iterations
    elif per_iteration is None:
        assert all(set(part) == set(prompts) for part in parts)
    assert split(prompts, seed) == parts


def test_another_seed_gives_another_order_and_whole_iterations_differ_from_each_other() -> None:
    prompts = some_prompts(50)
    first, second = (
        split_over_iterations(prompts, iterations=2, per_iteration=None, disjoint=False, seed=seed) for seed in (0, 1)
    )
    assert first != second and first[0] != first[1]


def test_too_few_prompts_are_told_with_both_numbers() -> None:
    with pytest.raises(RolloutInputError) as caught:
        split_over_iterations(some_prompts(10), iterations=3, per_iteration=4, disjoint=True, seed=0)
    message = str(caught.value)
    assert "needs 12 distinct prompts" in message and "there are 10" in message and "prompts.split=whole" in message
