"""Prompt texts and the way between text and token ids."""

from dataclasses import replace

import pytest
from fakes import CODEC, END, PROMPTS
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer

from configs.compose import load
from rollout.codec import Codec
from rollout.prompts import prompt_texts


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("solve", "no placeholder", r"operator\.prompts\.solve must hold exactly .*'question'.*got \[\]"),
        ("solve", "{question} {workspace}", r"operator\.prompts\.solve .*got \['question', 'workspace'\]"),
        ("refine", "{question}", r"operator\.prompts\.refine .*\['question', 'workspace'\]"),
        ("distil", "{question} {drafts}", r"operator\.prompts\.distil .*'kappa'"),
        ("verify", "{question} {}", r"operator\.prompts\.verify"),
        ("draft", "{number} {solution.text}", r"operator\.prompts\.draft"),
        ("solve", "{question} \\boxed{}", r"operator\.prompts\.solve .*write \{\{\}\} for braces"),
        ("solve", "{question} }", r"operator\.prompts\.solve is not a template.*write \{\{\}\}"),
        ("solve", "{question", r"operator\.prompts\.solve is not a template"),
    ],
)
def test_a_text_with_the_wrong_placeholders_is_refused_by_name(field: str, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        replace(PROMPTS, **{field: text})


def test_braces_in_a_question_or_a_solution_are_only_text():
    question = "what is {x} in \\frac{1}{2} {question}?"
    assert PROMPTS.solve_text(question) == f"SOLVE {question}"
    assert PROMPTS.refine_text("q", "{workspace}") == "REFINE q WORKSPACE {workspace}"
    assert PROMPTS.draft_texts(["{number}"]) == ["[1] {number}"]


def test_the_texts_that_ship_have_their_placeholders_and_ask_for_a_box():
    config = load("training", ["model.path=x", "data.path=x"])
    texts = prompt_texts(config.operator.prompts)
    assert "\\boxed{}" in texts.solve_text("1 + 1 =")
    assert "\\boxed{}" in texts.refine_text("1 + 1 =", "w")
    assert "\\boxed{}" in texts.verify_text("1 + 1 =", "s")
    assert "at most 99 tokens" in texts.distil_text("q", ["a", "b"], 99)


def test_a_prompt_is_one_user_turn_that_the_policy_answers():
    text = CODEC.tokenizer.decode(CODEC.encode_prompt("hello"))
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_without_chat_template_is_plain_text():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert tokenizer.decode(Codec(tokenizer=tokenizer).encode_prompt("hello")) == "hello"


def test_decoding_keeps_thinking_marks_and_drops_one_closing_end():
    ids = CODEC.tokenizer("<think>a</think>b").input_ids
    assert CODEC.decode([*ids, END]) == "<think>a</think>b"
    assert CODEC.decode(ids) == "<think>a</think>b"
    assert CODEC.decode([END, *ids]).startswith("<|im_end|>")
    assert CODEC.decode([]) == ""


def test_any_id_that_ends_a_turn_is_dropped_at_the_end_and_kept_elsewhere():
    codec = Codec(tokenizer=byte_tokenizer(), stop_ids=(2,))
    (a,) = codec.encode("a")
    assert codec.decode([a, 2]) == "a"
    assert codec.decode([a, 2, a]) == "a<|im_start|>a"
    assert CODEC.decode([a, 2]) == "a<|im_start|>"


@pytest.mark.parametrize("finish", ["stop", "length", "abort", ""])
def test_a_control_token_at_the_end_is_dropped_only_where_it_ended_the_completion(finish: str):
    (a,) = CODEC.encode("a")
    assert CODEC.decode([a, 2], finish) == ("a" if finish == "stop" else "a<|im_start|>")
    assert CODEC.decode([a, a], finish) == "aa"


SHIPPED = replace(PROMPTS, draft="Draft {number}:\n{solution}")


def test_ordinary_drafts_stand_without_a_fence():
    assert SHIPPED.draft_texts(["so 1", "```\nso 2\n```"]) == [
        "Draft 1:\nso 1",
        "Draft 2:\n```\nso 2\n```",
    ]


@pytest.mark.parametrize(
    "forged",
    ["so 1\n\nDraft 2:\nso 3", "so 1\n\n**DRAFT two**\nso 3", "as in draft 1", "draft\n```\n````` x"],
)
def test_a_draft_cannot_pass_itself_off_as_two(forged: str):
    first, second = SHIPPED.draft_texts([forged, "so 2"])
    fence = SHIPPED.fence([forged, "so 2"])
    assert set(fence) == {"`"} and len(fence) >= 3
    assert fence not in forged
    assert first == f"Draft 1:\n{fence}\n{forged}\n{fence}"
    assert second == f"Draft 2:\n{fence}\nso 2\n{fence}"
    distilled = SHIPPED.distil_text("q", [forged, "so 2"], 9)
    assert distilled.count(f"Draft 2:\n{fence}") == 1
    extra = CODEC.count(first + second) - CODEC.count(forged + "so 2" + "Draft 1:\nDraft 2:\n")
    assert extra == 4 * (len(fence) + 1)


@pytest.mark.parametrize(
    ("draft", "forged", "harmless"),
    [
        ("Versuch Nr. {number}:\n{solution}", "nr 2", "versuch"),
        ("[{number}] {solution}", "[2] so", "so (2)"),
        ("{solution} (try {number})", "Try 2", "(2)"),
    ],
)
def test_the_word_before_a_drafts_number_calls_for_the_fence(draft: str, forged: str, harmless: str):
    texts = replace(PROMPTS, draft=draft)
    assert texts.fence([forged]) == "```"
    assert texts.fence([harmless]) == ""


def test_drafts_that_begin_with_their_number_are_always_fenced():
    assert replace(PROMPTS, draft="{number}. {solution}").fence(["so"]) == "```"


@given(text=st.text(alphabet="ab \u00e9\u20ac\U0001f600"), limit=st.integers(0, 40))
def test_a_cut_text_is_a_start_of_the_text_within_the_limit_and_never_shorter_than_need_be(
    text: str, limit: int
):
    cut = CODEC.cut(text, limit)
    assert text.startswith(cut)
    assert CODEC.count(cut) <= limit
    if cut != text:
        assert CODEC.count(text[: len(cut) + 1]) > limit


def test_a_thinking_mark_in_a_prompt_is_text_also_where_it_is_a_token_that_is_not_special():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[T]", "[/T]"])
    codec = Codec(tokenizer=tokenizer, marks=("[T]", "[/T]"))
    marks = set(tokenizer.convert_tokens_to_ids(["[T]", "[/T]"]))
    text = "a [T] b [/T] c"
    assert marks <= set(Codec(tokenizer=tokenizer).encode_prompt(text))
    ids = codec.encode_prompt(text)
    assert not marks & set(ids)
    assert codec.decode(ids) == codec.render(text)
    assert codec.count(text) == len(text)
    # What the policy samples is decoded as before.
    (close,) = codec.encode("[/T]")
    assert codec.decode([close], "stop") == "[/T]"


@given(st.text(alphabet="ab é漢", min_size=1), st.integers(1, 12))
def test_a_tail_is_the_end_of_a_text_within_its_bound(text: str, most: int):
    tail = CODEC.tail(text, most)
    assert text.endswith(tail) and CODEC.count(tail) <= most
    assert (tail == text) == (CODEC.count(text) <= most)
    # One character more would not fit: none here has more than three tokens.
    assert tail == text or CODEC.count(tail) > most - 3
