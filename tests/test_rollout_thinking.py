"""Where thinking ends, and what is malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.thinking import MALFORMED, UNCLOSED, ThinkingMarks
from rollout.thinking import EMPTY, LABELS, NO_ANSWER, OK, TRUNCATED, Split, split

MARKS = ThinkingMarks()
BOX = "so \\boxed{2}"


@pytest.mark.parametrize(
    ("text", "label", "thinking", "solution"),
    [
        (f"<think>a</think>{BOX}", OK, "a", BOX),
        (f"  <think> a </think> \n{BOX}\n", OK, "a", BOX),
        (f"a</think>{BOX}", OK, "a", BOX),  # the chat template wrote the opening mark
        (BOX, OK, "", BOX),
        (f"<think></think>{BOX}", OK, "", BOX),
        (f"<think>a</think>b</think>{BOX}", OK, "a</think>b", BOX),
        (f"<think>a<think>b</think>c</think>{BOX}", OK, "ab</think>c", BOX),
        (f"<think>a</think>{BOX}<think>b</think>{BOX}", OK, f"a</think>{BOX}b", BOX),
        (f"<think>{BOX}", UNCLOSED, f"<think>{BOX}", ""),
        (f"{BOX}<think>", UNCLOSED, f"{BOX}<think>", ""),
        (f"<think>a</think>{BOX}<think>b", UNCLOSED, f"<think>a</think>{BOX}<think>b", ""),
        (f"</think><think>{BOX}", UNCLOSED, f"</think><think>{BOX}", ""),
        ("<think>a</think>it is 2", NO_ANSWER, "a", "it is 2"),
        ("it is 2", NO_ANSWER, "", "it is 2"),
        (f"<think>{BOX}</think>it is 2", NO_ANSWER, BOX, "it is 2"),
        ("<think>a</think>", EMPTY, "a", ""),
        (f"<think>{BOX}</think> \n ", EMPTY, BOX, ""),
        ("<think></think>", EMPTY, "", ""),
        ("</think>", EMPTY, "", ""),
        ("</think></think>", EMPTY, "</think>", ""),
        ("", EMPTY, "", ""),
        ("<think>", UNCLOSED, "<think>", ""),
    ],
)
def test_a_completion_splits_at_the_last_closing_mark(text: str, label: str, thinking: str, solution: str):
    expected = Split(label=label, thinking=thinking, solution=solution)
    assert split(text, finish="stop", marks=MARKS) == expected


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (f"<think>a</think>{BOX}<|im_end|>\n<|im_start|>user", MALFORMED),
        (f"<|im_start|>{BOX}", MALFORMED),
        (f"<think>a</think><|im_start|>{BOX}", MALFORMED),
        # Thoughts never enter a workspace.
        (f"<think>a<|im_start|></think>{BOX}", OK),
        (f"<think>{BOX}<|im_start|>", UNCLOSED),
        # Sampled as text, not as the token.
        (f"{BOX}<|endoftext|>", OK),
    ],
)
def test_a_solution_with_a_control_token_is_malformed(text: str, label: str):
    parts = split(text, finish="stop", marks=MARKS, control={"<|im_start|>", "<|im_end|>"})
    assert parts.label == label
    assert bool(parts.solution) == (label == OK)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (f"<think>a</think>{BOX}", TRUNCATED),
        (BOX, TRUNCATED),
        ("<think>a</think>", TRUNCATED),
        ("raw thoughts after a template that opened thinking", TRUNCATED),
        (f"<think>{BOX}", UNCLOSED),
    ],
)
def test_a_completion_that_ran_into_its_limit_is_never_ok(text: str, label: str):
    assert split(text, finish="length", marks=MARKS).label == label


def test_a_template_that_opened_the_thinking_leaves_no_solution_without_a_closing_mark():
    marks = ThinkingMarks(opened_by_prompt=True)
    assert split(f"thoughts, {BOX}", finish="stop", marks=marks).label == UNCLOSED
    assert split(f"thoughts</think>{BOX}", finish="stop", marks=marks).solution == BOX


def test_harmony_channels_split_like_a_pair_of_tags():
    marks = ThinkingMarks(open="<|channel|>analysis<|message|>", close="<|channel|>final<|message|>")
    text = f"{marks.open}hm<|end|><|start|>assistant{marks.close}{BOX}"
    assert split(text, finish="stop", marks=marks).solution == BOX
    assert split(f"{marks.open}hm {BOX}", finish="stop", marks=marks).label == UNCLOSED


def test_a_summary_needs_no_box():
    text = "<think>a</think>they agree"
    assert split(text, finish="stop", marks=MARKS, needs_answer=False).label == OK
    assert split(text, finish="abort", marks=MARKS, needs_answer=False).label == TRUNCATED


def test_custom_marks_replace_the_usual_ones():
    marks = ThinkingMarks(open="[T]", close="[/T]")
    assert split(f"[T]a[/T]{BOX}", finish="stop", marks=marks).solution == BOX
    assert split(f"[T]{BOX}", finish="stop", marks=marks).label == UNCLOSED
    usual = split(f"<think>a</think>{BOX}", finish="stop", marks=marks)
    assert usual.solution == f"<think>a</think>{BOX}"


def test_one_string_may_be_both_marks_only_if_it_closes():
    marks = ThinkingMarks(open="##", close="##")
    assert split(f"##a##{BOX}", finish="stop", marks=marks).solution == BOX


@given(
    parts=st.lists(st.sampled_from(["<think>", "</think>", "secret", BOX, " "]), max_size=8),
    finish=st.sampled_from(["stop", "length"]),
)
def test_a_usable_solution_holds_no_mark_and_nothing_from_before_the_last_one(parts: list[str], finish: str):
    text = "".join(parts)
    result = split(text, finish=finish, marks=MARKS)
    assert result.label in LABELS
    if result.label == OK:
        assert finish == "stop"
        assert result.solution == text.split("</think>")[-1].split("<think>")[-1].strip()
        assert "think>" not in result.solution and "\\boxed" in result.solution
    if result.label in (UNCLOSED, EMPTY):
        assert result.solution == ""
