"""Preference pairs from files: the forms, the counts, and what each bad row is told."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reward.errors import RewardInputError
from reward.pair_sources import PairSource, load_pairs, stream_pairs
from reward.pairs import PreferencePair, read_pairs


def talk(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def write(folder: Path, rows: list[Any], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


ROWS = [
    {"chosen": talk("q", "good"), "rejected": talk("q", "bad")},
    {"chosen": talk("q", "so", "and?", "ü"), "rejected": talk("q", "so", "and?", "v")},
]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs.parquet"])
def test_every_file_form_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    found = read_pairs(write(tmp_path, ROWS, name))
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [(row["chosen"], row["rejected"]) for row in ROWS]
    assert (found.duplicates, found.ties) == (0, 0)


@pytest.mark.parametrize("second", ["reject", "rejected"])
def test_an_instruction_with_two_strings_becomes_messages(tmp_path: Path, second: str) -> None:
    rows = [{"instruction": "q", "chosen": "good", second: "bad", "label": 1}]
    assert read_pairs(write(tmp_path, rows)).pairs == (PreferencePair(talk("q", "good"), talk("q", "bad")),)


def test_pairs_of_one_prompt_share_a_group_unless_the_file_names_it(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"chosen": talk("q", "b"), "rejected": talk("q", "c")},
        {"instruction": "other", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": "a", "rejected": "b", "group": 7},
    ]
    groups = [pair.group for pair in read_pairs(write(tmp_path, rows)).pairs]
    assert groups[0] == groups[1] != groups[2] and groups[3] == "7"


def test_ties_and_exact_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    row = {"instruction": "q", "chosen": "a", "rejected": "b"}
    swapped = {"instruction": "q", "chosen": "b", "rejected": "a"}
    rows = [row, {**row, "rejected": "a"}, row, swapped, {**row, "margin": 2}, row]
    found = read_pairs(write(tmp_path, rows))
    assert (len(found.pairs), found.duplicates, found.ties) == (3, 2, 1)


def test_labels_follow_the_probability_of_the_chosen_answer(tmp_path: Path) -> None:
    row = {"instruction": "q", "chosen": "a", "rejected": "b"}
    rows = [row, *({**row, "target_prob": p} for p in (0.9, 0.5, 0.2))]
    pairs = read_pairs(write(tmp_path, rows)).pairs
    assert [pair.label for pair in pairs] == [1, 1, 0, -1]
    assert [pair.target_prob for pair in pairs] == [1.0, 0.9, 0.5, 0.2]


GOOD = {"instruction": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"chosen": talk("q", "a")}, "no 'rejected'"),
        ({"rejected": talk("q", "a")}, "no 'chosen'"),
        ({"chosen": "a", "rejected": "b"}, "instruction is None"),
        ({"instruction": "q", "chosen": "a", "rejected": ["b"]}, "expected a string"),
        ({"chosen": talk("q", "a"), "rejected": talk("p", "b")}, "differ before"),
        ({"chosen": talk("q", "a"), "rejected": talk("q", "a", "b", "c")}, "differ before"),
        ({"chosen": talk("q"), "rejected": talk("q")}, "a prompt and its answer"),
        ({"chosen": talk("q", "a", "b"), "rejected": talk("q", "a", "c")}, "ends with a 'user' message"),
        ({"chosen": [{"role": "user"}, 3], "rejected": talk("q", "a")}, "chosen, message 0"),
        ({**GOOD, "margin": "big"}, "margin is 'big'"),
        ({**GOOD, "margin": float("inf")}, "margin is inf"),
        ({**GOOD, "margin": 10**400}, "margin is 1000"),
        ({**GOOD, "target_prob": 1.5}, "target_prob is 1.5"),
        ({**GOOD, "group": ""}, "group is ''"),
        ("text", "found str"),
    ],
)
def test_a_bad_row_is_named_with_what_was_found(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(RewardInputError, match=r"pairs\.jsonl, row 2") as raised:
        read_pairs(write(tmp_path, [GOOD, row]))
    assert told in str(raised.value) and "expected" in str(raised.value)


def test_the_custom_form_takes_no_more_than_two_messages(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    for read in (load_pairs, lambda source: list(stream_pairs(source))):
        with pytest.raises(RewardInputError, match=r"row 2: 4 messages, expected an instruction and an answer"):
            read(PairSource(path=str(path), template=False))


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardInputError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(RewardInputError, match=r"ending '\.csv'"):
        read_pairs(write(tmp_path, [], "pairs.csv"))
    with pytest.raises(RewardInputError, match="1 rows, 1 of them ties"):
        read_pairs(write(tmp_path, [{**GOOD, "rejected": "a"}]))
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(GOOD) + '\n{"chosen": ', "utf-8")
    with pytest.raises(RewardInputError, match=r"torn\.jsonl, row 2: not valid JSON"):
        read_pairs(torn)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "pairs.json"):
        path = write(tmp_path, ROWS, name)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(read_pairs(path).pairs) == 2


def test_a_parquet_file_that_is_damaged_anywhere_is_told(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{place}", "chosen": "a" * 50, "rejected": f"b{place}"} for place in range(500)]
    whole = write(tmp_path, rows, "pairs.parquet").read_bytes()
    # Cut off, its footer is gone; with zeros in the middle it opens and fails while it is read.
    for content in (whole[: len(whole) // 2], whole[:4] + bytes(1000) + whole[1004:], b"no parquet"):
        (tmp_path / "pairs.parquet").write_bytes(content)
        with pytest.raises(RewardInputError, match=r"pairs\.parquet: not readable Parquet"):
            read_pairs(tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("name", "told"), [("pairs.jsonl", "row 1: not valid JSON"), ("pairs.json", "not a JSON list")]
)
def test_json_that_is_nested_too_deep_is_told(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[" * 100_000, "utf-8")
    with pytest.raises(RewardInputError, match=told):
        read_pairs(tmp_path / name)
