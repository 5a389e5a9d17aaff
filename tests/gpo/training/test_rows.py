"""What a user's data set may look like: every form ends as the same rows, and a fault names column or row.

Run: python -m pytest tests/gpo/training/test_rows.py
"""

import json
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset

from gpo.targets import Method, preference_targets
from gpo.training.rows import prepare_rows
from gpo.training.trainer_config import GPOConfig
from tests.gpo.training.small_training import TOKENIZER
from tests.tiny import LLAMA_TEMPLATE, make_tokenizer

GOOD = {"prompt": "a", "completion": "b", "target": 1.0}
TABLE = [[0.0, 0.4, -0.2], [-0.4, 0.0, 0.6], [0.2, -0.6, 0.0]]


def prepared(rows: list[dict[str, Any]], **options: Any) -> Dataset:
    args = GPOConfig(output_dir="unused", use_cpu=True, report_to=[], **options)
    return prepare_rows(Dataset.from_list(rows), TOKENIZER, args)[0]


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def test_text_is_tokenised_once_and_ends_with_the_end_token() -> None:
    (row,) = prepared([{"prompt": "2+2=", "completion": "4", "target": 1.5}])
    assert row["prompt_ids"] == ids("2+2=") and row["target"] == 1.5
    assert row["completion_ids"] == [*ids("4")[1:], TOKENIZER.eos_token_id]


def test_messages_are_rendered_by_the_template_with_the_generation_prompt() -> None:
    prompt = [{"role": "user", "content": "hi"}]
    completion = [{"role": "assistant", "content": "yes"}]
    for given in (completion, "yes"):
        (row,) = prepared([{"prompt": prompt, "completion": given, "target": 0.0}])
        rendered = TOKENIZER.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        assert TOKENIZER.decode(row["prompt_ids"]).endswith(rendered[-20:])
        assert TOKENIZER.decode(row["completion_ids"]) == "yes<|eot|>"


def test_answers_in_a_list_may_be_messages_as_well() -> None:
    prompt = [{"role": "user", "content": "hi"}]
    answers = [[{"role": "assistant", "content": word}] for word in ("yes", "no")]
    single = [{"prompt": prompt, "completion": answer, "target": 1.0} for answer in answers]
    together = [{"prompt": prompt, "completion": answers, "target": [1.0, 1.0]}]
    found = prepared(together)
    assert [TOKENIZER.decode(ids) for ids in found["completion_ids"]] == ["yes<|eot|>", "no<|eot|>"]
    assert found.to_list() == prepared(single).to_list()


TOOLS = [{"type": "function", "function": {"name": "clock", "description": "Tells the time."}}]
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize("answer", [{"completion": "yes"}, {"completion_ids": [1, 2]}])
def test_tools_and_options_of_the_template_are_given_to_it_with_the_row(tools: Any, answer: dict[str, Any]) -> None:
    tokenizer = make_tokenizer("{{ mood }}{%- if tools %}{{ tools | tojson }}{%- endif %}" + LLAMA_TEMPLATE)
    row = {"prompt": MESSAGES, **answer, "target": 0.0, "tools": tools, "chat_template_kwargs": {"mood": "calm"}}
    bare = {**row, "tools": None, "chat_template_kwargs": None}
    args = GPOConfig(output_dir="unused", use_cpu=True, report_to=[])
    full, plain = prepare_rows(Dataset.from_list([row, bare]), tokenizer, args)[0]
    told = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, mood="calm", add_generation_prompt=True)["input_ids"]
    assert full["prompt_ids"] == told != plain["prompt_ids"]
    assert plain["prompt_ids"] == tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert full["completion_ids"] == plain["completion_ids"]
    assert "completion_ids" in answer or tokenizer.decode(full["completion_ids"]) == "yes<|eot|>"


def test_what_only_other_rows_tell_the_template_is_not_told() -> None:
    """A table fills rows up with None, which a template would take for a value."""
    tokenizer = make_tokenizer("{%- if mood is defined %}{{ mood }}{%- endif %}" + LLAMA_TEMPLATE)
    rows = [{**GOOD, "prompt": MESSAGES, "chat_template_kwargs": {name: "so"}} for name in ("mood", "other")]
    found = prepare_rows(Dataset.from_list(rows), tokenizer, GPOConfig(output_dir="unused", use_cpu=True))[0]
    first, second = (tokenizer.decode(ids) for ids in found["prompt_ids"])
    assert first.startswith("so") and second == first.removeprefix("so")


def test_ids_are_used_as_they_are_and_get_no_end_token() -> None:
    (row,) = prepared([{"prompt_ids": [5, 6], "completion_ids": [7, 8], "target": -1.0}])
    assert (row["prompt_ids"], row["completion_ids"]) == ([5, 6], [7, 8])


def test_a_row_a_prompt_with_its_table_gives_the_targets_of_the_table() -> None:
    rows = prepared(
        [{"prompt": "a", "completion": ["b", "c", "d"], "table": TABLE}], target_beta=0.5, tau=0.1, clamp=3.0
    )
    expected = preference_targets(torch.tensor(TABLE), method="gpo", tau=0.1, beta=0.5, clamp=3.0)
    assert rows["target"][:] == pytest.approx(expected.tolist(), abs=1e-5)
    assert rows["best"][:] == [float(k == int(expected.argmax())) for k in range(3)]
    assert len(set(rows["prompt_id"])) == 1


def test_rows_of_one_prompt_with_tables_of_their_own_have_the_targets_of_each_table() -> None:
    other = [[0.0, -1.0, 0.3], [1.0, 0.0, 0.1], [-0.3, -0.1, 0.0]]
    tables = ((["b", "c", "d"], TABLE), (["e", "f", "g"], other))
    rows = [{"prompt": "a", "completion": words, "table": table} for words, table in tables]
    found = prepared(rows, target_beta=0.5, exclude_self=True)
    each = [
        preference_targets(torch.tensor(table), method="gpo", tau=1.0, beta=0.5, exclude_self=True).tolist()
        for _, table in tables
    ]
    assert found["target"][:] == pytest.approx([*each[0], *each[1]], abs=1e-6)
    assert len(set(found["prompt_id"])) == 1 and sum(found["best"]) == 1.0


def test_scores_of_single_rows_are_centred_over_their_prompt() -> None:
    rows = [{"prompt": "a", "completion": word, "score": score} for word, score in (("b", 1.0), ("c", 3.0))]
    assert prepared(rows, target_beta=2.0)["target"][:] == [0.5, 1.5]
    assert prepared(rows, target_beta=2.0, log_z="mean")["target"][:] == [-0.5, 0.5]


@pytest.mark.parametrize("method", get_args(Method))
def test_a_table_becomes_the_targets_of_the_method_that_is_asked_for(method: Method) -> None:
    row = {"prompt": "a", "completion": ["b", "c", "d"], "table": TABLE}
    expected = preference_targets(torch.tensor(TABLE, dtype=torch.float64), method=method, tau=0.5, beta=2.0)
    found = prepared([row], target_method=method, target_beta=2.0, tau=0.5)["target"][:]
    assert found == pytest.approx(expected.tolist(), rel=1e-6)


def test_every_form_ends_as_the_same_rows() -> None:
    words, targets = ["b", "c", "d"], [1.0, -2.0, 0.5]
    single = [{"prompt": "a", "completion": w, "target": t} for w, t in zip(words, targets, strict=True)]
    token_rows = [
        {"prompt_ids": ids("a"), "completion_ids": [*ids(w)[1:], TOKENIZER.eos_token_id], "target": t}
        for w, t in zip(words, targets, strict=True)
    ]
    together = [{"prompt": "a", "completion": words, "target": targets}]
    nested = [
        {"prompt_ids": ids("a"), "completion_ids": [row["completion_ids"] for row in token_rows], "target": targets}
    ]
    found = [prepared(rows).to_list() for rows in (single, token_rows, together, nested)]
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]) == 3


def test_best_and_worst_are_picked_before_the_clamp_and_equal_answers_say_nothing() -> None:
    rows = [
        {"prompt": "a", "completion": ["b", "c", "d", "e"], "score": [5.0, 9.0, -9.0, -5.0]},
        {"prompt": "f", "completion": ["g", "h"], "score": [1.0, 1.0]},
    ]
    found = prepared(rows, target_beta=1.0, clamp=2.0, select="best-and-worst")
    assert [TOKENIZER.decode(ids[:1]) for ids in found["completion_ids"]] == ["c", "d"]
    assert found["target"][:] == [2.0, -2.0] and found["best"][:] == [1.0, 0.0]


def test_top_and_bottom_come_in_pairs_the_better_first() -> None:
    rows = [{"prompt": "a", "completion": list("bcdef"), "target": [1.0, 5.0, 3.0, 2.0, 4.0]}]
    found = prepared(rows, select="top-and-bottom", select_n=2)
    assert [TOKENIZER.decode(ids[:1]) for ids in found["completion_ids"]] == ["c", "b", "f", "e"]


def test_standardised_targets_have_the_root_mean_square_that_was_asked_for() -> None:
    rows = [{"prompt": "a", "completion": list("bc"), "target": [30.0, -10.0]}]
    found = torch.tensor(prepared(rows, standardise=2.0)["target"][:])
    assert found.square().mean().sqrt().item() == pytest.approx(2.0)
    assert found[0].item() == pytest.approx(-3 * found[1].item())


def test_the_clamp_bounds_what_is_trained_on_after_the_scaling() -> None:
    rows = [{"prompt": "a", "completion": list("bcd"), "score": [30.0, -10.0, 1.0]}]
    found = torch.tensor(prepared(rows, target_beta=1.0, standardise=2.0, clamp=1.5)["target"][:])
    scale = 2.0 / torch.tensor([30.0, -10.0, 1.0]).square().mean().sqrt()
    assert found.tolist() == pytest.approx([1.5, (-10 * scale).item(), scale.item()])


def test_targets_that_are_given_are_clamped_too_and_ranked_before() -> None:
    rows = [{"prompt": "a", "completion": list("bcd"), "target": [5.0, -0.5, 7.0]}]
    found = prepared(rows, clamp=1.0)
    assert found["target"][:] == [1.0, -0.5, 1.0] and found["best"][:] == [0.0, 0.0, 1.0]
    scaled = prepared(rows, clamp=1.5, standardise=2.0)["target"][:]
    factor = 2.0 / torch.tensor(rows[0]["target"]).square().mean().sqrt().item()
    assert scaled == pytest.approx([1.5, -0.5 * factor, 1.5])


def test_a_prompt_with_fewer_answers_than_asked_for_gives_those_it_has() -> None:
    rows = [
        {"prompt": "a", "completion": list("bcde"), "target": [4.0, 3.0, 2.0, 1.0]},
        {"prompt": "f", "completion": list("ghi"), "target": [3.0, 2.0, 1.0]},
    ]
    assert len(prepared(rows, select="top-and-bottom", select_n=2)) == 4 + 2


def test_rows_that_are_prepared_come_back_as_they_are() -> None:
    once = prepared([{"prompt": "a", "completion": "b", "target": 1.0}])
    again, factor = prepare_rows(once, TOKENIZER, GPOConfig(output_dir="unused", use_cpu=True))
    assert again is once and factor is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "b", "target": 1.0}, r"missing 'prompt_ids' or 'prompt'; it has \['completion', 'target'\]"),
        ({"prompt": "a", "target": 1.0}, "missing 'completion_ids' or 'completion'"),
        ({"prompt_ids": [1], "completion": "b", "target": 1.0}, "'completion' is text and needs 'prompt', not ids"),
        ({"prompt": "a", "completion": "b"}, "missing 'target', 'score' or 'table'"),
        ({"prompt": "a", "completion": ["b", "c"], "target": [1.0]}, "row 0: target is for 1 answers, and there are 2"),
        ({"prompt": "a", "completion": "b", "target": float("nan")}, r"row 0: target holds \[nan\]; expected finite"),
        ({"prompt_ids": [1], "completion_ids": [[2], []], "target": [1.0, 2.0]}, "row 0: 1 prompt and 0 completion"),
        ({"prompt_ids": [1], "completion_ids": [[2], None], "target": [1.0, 2.0]}, "row 0: 1 prompt and 0 completion"),
        ({"prompt": "a", "completion": [], "target": []}, "row 0: no completion; expected at least one"),
        ({"prompt": "a", "completion": ["b", None], "target": [0.0, 1.0]}, "row 0: no completion; expected one"),
        ({"prompt": "a", "completion": "b", "score": 1.0}, "GPOConfig.target_beta=...., which has no default"),
        (
            {**GOOD, "images": []},
            "'images' is a column of pictures, and a GPOTrainer trains on text alone; leave the col",
        ),
        ({**GOOD, "image": None}, "'image' is a column of pictures"),
        (
            {**GOOD, "tools": "[]"},
            "row 0: tools would be given to the chat template, and prompt is text; give messages",
        ),
        ({**GOOD, "chat_template_kwargs": {"mood": "calm"}}, "row 0: mood would be given to the chat template"),
        (
            {**GOOD, "prompt": MESSAGES, "tools": "clock"},
            r"row 0: tools holds 'clock'; expected a list of tools, or its",
        ),
        (
            {**GOOD, "prompt": MESSAGES, "tools": "3"},
            "row 0: tools holds 3 and chat_template_kwargs {}; expected a list",
        ),
        (
            {**GOOD, "prompt": MESSAGES, "chat_template_kwargs": "x"},
            "tools holds None and chat_template_kwargs 'x'; expe",
        ),
    ],
)
def test_a_fault_names_the_column_or_the_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"train data set.*{message}"):
        prepared([row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_ids": [], "completion_ids": [1], "target": 0.0}, "row 1: 0 prompt and 1 completion tokens"),
        ({"completion_ids": [1], "target": 0.0}, "row 1: no prompt_ids or prompt; expected one"),
        ({"prompt": "a", "target": 0.0}, "row 1: no completion_ids or completion; expected one"),
        ({"completion": "b", "target": 0.0}, "row 1: no prompt; expected one"),
        ({"prompt": "a", "completion": "b"}, "row 1: no target, score or table; expected one of them"),
        ({"prompt": "p", "completion": "b", "score": 1.0}, "row 1 has no target or table, and others of its prompt"),
        ({"prompt": "p", "completion": "b", "target": 1.0, "score": 1.0}, "row 0 has no score, and others of its prom"),
        ({"prompt": "a", "completion": "b", "target": 1.0, "ref_logps": -3.0}, "row 0 has no ref_logps, and others ha"),
    ],
)
def test_what_a_row_lacks_is_named_with_the_row(row: dict[str, Any], message: str) -> None:
    good = {**GOOD, "prompt": "p"}
    with pytest.raises(ValueError, match=f"train data set.*{message}"):
        prepared([{name: one.get(name) for name in good | row} for one in (good, row)], target_beta=1.0)


def test_a_prompt_id_of_none_leaves_prompts_apart() -> None:
    rows = [{"prompt": prompt, "completion": "b", "target": 1.0, "prompt_id": None} for prompt in ("p", "q")]
    assert len(set(prepared(rows)["prompt_id"])) == 2
    assert prepared(rows)["best"][:] == [1.0, 1.0]


def test_a_selection_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no row is left to train on .it has 1, select='best-and-worst'"):
        prepared([GOOD], select="best-and-worst")
