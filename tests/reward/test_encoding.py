"""Token rows: the published rules id by id, the other policies, and what is refused."""

import logging
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reward.encoding import Conversation, ConversationEncoder, EncodedConversation
from reward.errors import RewardInputError
from reward.settings import RewardSettings
from tests.reward import published
from tests.tiny import END, GEMMA_TEMPLATE, PAD, START, make_tokenizer

LONG = "abcdefghijklmnopqrstuvwxyz"


def encoder_for(
    max_length: int = 512, tokenizer: PreTrainedTokenizerBase | None = None, **policies: Any
) -> ConversationEncoder:
    settings = RewardSettings.published(6, True, **policies)
    return ConversationEncoder(tokenizer or make_tokenizer(), settings, max_length)


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def encode_one(encoder: ConversationEncoder, messages: list[dict[str, str]]) -> EncodedConversation:
    return encoder.encode([messages])[0]


@published.present
@pytest.mark.parametrize("case", published.cases())
def test_ids_and_prompt_ends_are_the_published_ones(case: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published.checkpoint(case["checkpoint"]))
    encoder = ConversationEncoder(tokenizer, RewardSettings.published(6, True), case["max_length"])
    if case.get("expect_template_error"):
        with pytest.raises(RewardInputError, match="chat template refuses"):
            encoder.encode(case["conversations"])
        return
    rows = encoder.encode(case["conversations"])
    assert [row.input_ids for row in rows] == case["input_ids"]
    assert [row.prompt_end for row in rows] == case["prompt_end_index"]
    cut = [count > case["max_length"] for count in case["token_count_untruncated"]]
    assert [row.truncated for row in rows] == cut
    assert all(row.prompt_is_prefix for row in rows)


@published.present
@pytest.mark.parametrize("case", published.cases())
def test_alternative_policies_are_the_published_ones(case: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published.checkpoint(case["checkpoint"]))
    if "alt_single_bos" in case:
        encoder = encoder_for(case["max_length"], tokenizer, bos_policy="single")
        rows = encoder.encode(case["conversations"])
        assert [row.input_ids for row in rows] == case["alt_single_bos"]["input_ids"]
    if "alt_gate_all_but_last_message" in case:
        encoder = encoder_for(case["max_length"], tokenizer, gate_prompt="all_but_last")
        rows = encoder.encode(case["conversations"])
        expected = case["alt_gate_all_but_last_message"]["prompt_end_index"]
        assert [row.prompt_end for row in rows] == expected


@published.present
def test_custom_rows_are_the_published_ones() -> None:
    for part in published.load("train_inputs.json")["custom_format"]:
        tokenizer = AutoTokenizer.from_pretrained(published.checkpoint(part["checkpoint"]))
        encoder = ConversationEncoder(tokenizer, RewardSettings.published(6, True), part["max_length"])
        for row, expected in zip(part["rows"], part["expected"], strict=True):
            chosen = encoder.encode_custom(row["instruction"], row["chosen"])
            assert chosen.input_ids == expected["chosen_input_ids"]
            rejected = encoder.encode_custom(row["instruction"], row["reject"])
            assert rejected.input_ids == expected["rejected_input_ids"]
            assert len(chosen.input_ids) - chosen.prompt_len == expected["response_len"]


@pytest.mark.parametrize(("policy", "count"), [("reference", 2), ("single", 1), ("none", 0)])
def test_bos_policies_keep_two_one_or_no_bos(policy: str, count: int) -> None:
    encoder = encoder_for(bos_policy=policy)
    row = encode_one(encoder, talk("hi", "yes"))
    bos, start = encoder.tokenizer.bos_token_id, encoder.tokenizer.convert_tokens_to_ids(START)
    assert row.input_ids[: count + 1] == [bos] * count + [start]
    assert row.input_ids[row.prompt_end] == encoder.tokenizer.eos_token_id and row.prompt_is_prefix


def test_bos_none_warns_once_where_the_template_marks_turns_with_bos(caplog: pytest.LogCaptureFixture) -> None:
    marks = "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>{{ m['content'] }}<|eot|>{% endfor %}"
    tokenizer = make_tokenizer(marks, adds_bos=False)
    tokenizer.bos_token = START
    start = tokenizer.convert_tokens_to_ids(START)
    for policy, turns in (("reference", 2), ("single", 2), ("none", 1)):
        encoder = encoder_for(tokenizer=tokenizer, bos_policy=policy)
        rows = encoder.encode([talk("q", "a"), talk("r", "b")])
        assert [row.input_ids.count(start) for row in rows] == [turns, turns]
        assert len(caplog.records) == (policy == "none")
    assert "takes '<|start|>' away" in caplog.text and "the first turn loses its mark" in caplog.text
    caplog.clear()
    encode_one(encoder_for(bos_policy="none"), talk("q", "a"))
    assert not caplog.records


def test_eos_overwrites_the_newline_after_a_gemma_turn_and_append_keeps_it() -> None:
    tokenizer = make_tokenizer(GEMMA_TEMPLATE)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    end, eos = tokenizer.convert_tokens_to_ids(END), tokenizer.eos_token_id
    overwritten = encode_one(encoder_for(tokenizer=tokenizer), talk("hi", "yes"))
    assert overwritten.input_ids[-2:] == [end, eos]
    appended = encode_one(encoder_for(tokenizer=tokenizer, eos_policy="append"), talk("hi", "yes"))
    assert appended.input_ids == [*overwritten.input_ids[:-1], newline, eos]
    assert overwritten.input_ids[overwritten.prompt_end] == newline


def test_append_adds_no_second_eos_and_stays_within_max_length() -> None:
    whole = encode_one(encoder_for(), talk("hi", LONG))
    assert encode_one(encoder_for(eos_policy="append"), talk("hi", LONG)) == whole
    tokenizer = make_tokenizer(GEMMA_TEMPLATE)
    size = len(encode_one(encoder_for(tokenizer=tokenizer), talk("hi", LONG)).input_ids)
    for max_length, truncated in ((size + 1, False), (size, True), (3, True), (1, True)):
        row = encode_one(encoder_for(max_length, tokenizer, eos_policy="append"), talk("hi", LONG))
        assert len(row.input_ids) == max_length and row.truncated == truncated
        assert row.input_ids[-1] == tokenizer.eos_token_id


def test_prompt_truncation_keeps_the_answer_whole_and_the_gate_at_the_prompt_end() -> None:
    whole = encode_one(encoder_for(), talk(LONG, "an answer"))
    excess = 10
    encoder = encoder_for(len(whole.input_ids) - excess, truncation="prompt")
    cut = encode_one(encoder, talk(LONG, "an answer"))
    assert cut.input_ids == whole.input_ids[:2] + whole.input_ids[2 + excess :]
    assert cut.prompt_end == whole.prompt_end - excess and cut.truncated
    assert len(cut.input_ids) - cut.prompt_len == len(whole.input_ids) - whole.prompt_len
    untouched = encode_one(encoder_for(truncation="prompt"), talk(LONG, "an answer"))
    assert untouched == whole


def test_prompt_truncation_of_many_turns_falls_back_to_the_last_prompt_token() -> None:
    messages = talk("first", "second", "third", "fourth")
    before = encode_one(encoder_for(gate_prompt="all_but_last"), messages)
    whole = encode_one(encoder_for(), messages)
    drop = whole.prompt_end - 1
    cut = encode_one(encoder_for(len(whole.input_ids) - drop, truncation="prompt"), messages)
    assert cut.prompt_end == before.prompt_end - drop
    assert (
        cut.input_ids[: cut.prompt_end + 1] == whole.input_ids[:2] + whole.input_ids[2 + drop : before.prompt_end + 1]
    )


def test_prompt_truncation_keeps_the_answer_where_the_prompt_alone_is_no_prefix(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As templates do that say more while no answer is there: the prompt alone is longer.
    template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<|end|>{% endfor %}"
        "{% if messages[-1]['role'] == 'user' %}{{ 'and much more ' * 3 }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    whole = encode_one(encoder_for(tokenizer=tokenizer), talk("q", "a", LONG, "the answer"))
    with caplog.at_level(logging.WARNING):
        encoder = encoder_for(len(whole.input_ids) - 50, tokenizer, truncation="prompt")
        cut = encoder.encode([talk("q", "a", LONG, "the answer")] * 2)[1]
    assert cut.input_ids == whole.input_ids[:1] + whole.input_ids[51:]
    assert tokenizer.decode(cut.input_ids[1:-1]).endswith("assistant:the answer")
    assert [record.getMessage() for record in caplog.records if "rendering it empty" in record.getMessage()]
    # An answer that is too long loses its end, not its beginning.
    tail = encode_one(encoder_for(10, tokenizer, truncation="prompt"), talk("q", "a", LONG, "the answer"))
    assert tokenizer.decode(tail.input_ids[1:-1]) == ":the ans"


def test_an_answer_longer_than_the_row_is_cut_even_under_prompt_truncation() -> None:
    row = encode_one(encoder_for(20, truncation="prompt"), talk("hi", LONG * 3))
    assert len(row.input_ids) == 20 and row.input_ids[-1] == row.input_ids[row.prompt_end]


def test_equal_prompts_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_for()
    rendered: list[int] = []
    original = encoder._render

    def render(messages: Conversation, row: int) -> str:
        rendered.append(len(messages))
        return original(messages, row)

    monkeypatch.setattr(encoder, "_render", render)
    rows = encoder.encode([talk("the same", answer) for answer in ("a", "b", "c", "a")])
    assert sorted(rendered) == [1, 2, 2, 2]
    assert rows[0] == rows[3] and rows[0] != rows[1]


def test_rows_do_not_depend_on_their_neighbours() -> None:
    conversations = [talk("q", "a"), talk(LONG, "b", "c", "d"), talk("q", LONG), talk("x", "y", system="s")]
    mixed: dict[str, Any] = {"gate_prompt": "all_but_last", "eos_policy": "append"}
    for policies in ({}, {"truncation": "prompt"}, mixed):
        encoder = encoder_for(40, **policies)
        assert encoder.encode(conversations) == [encode_one(encoder, messages) for messages in conversations]


def test_a_prompt_that_is_no_token_prefix_is_marked_and_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # This template says how many messages follow, so the prompt alone starts with other tokens.
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    encoder = encoder_for(tokenizer=make_tokenizer(template))
    with caplog.at_level(logging.WARNING):
        rows = encoder.encode([talk("q", "a"), talk("q", "b")])
    assert [row.prompt_is_prefix for row in rows] == [False, False]
    assert len(caplog.records) == 1 and "row 0" in caplog.text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], r"row 1 is \[\], expected a list"),
        ("text", "row 1 is 'text', expected a list"),
        (talk("q"), "row 1 ends with a 'user' message"),
        ([*talk("q"), {"role": "assistant", "content": None}], "row 1, message 1: content is None"),
        ([*talk("q"), "answer"], "row 1, message 1 is 'answer'"),
    ],
)
def test_bad_conversations_are_refused_with_their_row(bad: Any, message: str) -> None:
    with pytest.raises(RewardInputError, match=message):
        encoder_for().encode([talk("q", "a"), bad])


def test_a_template_that_refuses_a_role_is_an_error_with_the_row() -> None:
    encoder = encoder_for(tokenizer=make_tokenizer(GEMMA_TEMPLATE))
    with pytest.raises(RewardInputError, match="row 1: the chat template refuses.*System role not supported"):
        encoder.encode([talk("q", "a"), talk("q", "a", system="s")])


def test_an_empty_answer_is_a_conversation_like_any_other() -> None:
    row = encode_one(encoder_for(), talk("q", ""))
    assert row.input_ids[-1] == make_tokenizer().eos_token_id


def test_tokenizers_without_template_or_eos_are_refused() -> None:
    with pytest.raises(RewardInputError, match="row 7: the tokenizer has no chat template"):
        encoder_for(tokenizer=make_tokenizer(None)).encode([talk("q", "a")], [7])
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RewardInputError, match="no EOS token"):
        encoder_for(tokenizer=tokenizer)
    with pytest.raises(RewardInputError, match="max_length is 0"):
        encoder_for(0)


def test_custom_rows_need_no_template() -> None:
    encoder = encoder_for(tokenizer=make_tokenizer(None))
    row = encoder.encode_custom("Say", "ok")
    assert encoder.tokenizer.decode(row.input_ids[1:-1]) == "Say ok "
    assert PAD not in encoder.tokenizer.decode(row.input_ids)


def test_settings_name_what_the_card_would_compute_differently() -> None:
    assert RewardSettings.published(6, True).card_compatible
    changed = RewardSettings.published(6, True, bos_policy="single", gate_prompt="all_but_last")
    assert changed.card_differences == ("bos_policy", "gate_prompt")
    assert RewardSettings.published(6, False, gate_prompt="all_but_last").card_compatible


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bos_policy": "double"}, "expected one of: reference, single, none"),
        ({"tau": 0}, "tau is 0"),
        ({"bos": "none"}, "unknown policy bos; expected some of: bos_policy"),
        ({"value_head_dim": 4}, "unknown policy value_head_dim"),
    ],
)
def test_unknown_or_impossible_policies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardInputError, match=message):
        RewardSettings.published(6, True).with_policies(**changes)
