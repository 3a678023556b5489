"""One rule for where thinking ends: what a workspace may hold, and where an answer is looked for.

Every case runs through ``rollout.thinking.split`` and through ``rewards.answers.extract``.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import ThinkingConfig
from configs.thinking import MALFORMED, UNCLOSED, Parts, ThinkingMarks, divide
from rewards.answers.extract import Rules, extract
from rewards.shaping import TERMS, RewardInput, ShapingOptions
from rewards.verdict import Verdict
from rollout.thinking import EMPTY, NO_ANSWER, OK, TRUNCATED, split

USUAL = ThinkingMarks()
OPENED = ThinkingMarks(opened_by_prompt=True)
LETTERLESS = ThinkingMarks(open="[[", close="]]")
SAME = ThinkingMarks(open="##", close="##")
HARMONY = ThinkingMarks(open="<|channel|>analysis<|message|>", close="<|channel|>final<|message|>")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A completion and what both sides make of it."""

    text: str
    label: str
    solution: str = ""
    """What may enter a workspace, if the label is ``ok``."""
    answer: str | None = None
    """What is judged."""
    marks: ThinkingMarks = USUAL
    finish: str = "stop"


def _ok(text: str, marks: ThinkingMarks = USUAL) -> Case:
    """A completion whose thoughts box 1 and whose solution is ``\\boxed{2}``."""
    return Case(text=text, label=OK, solution=r"\boxed{2}", answer="2", marks=marks)


def _refused(text: str, label: str, marks: ThinkingMarks = USUAL, finish: str = "stop") -> Case:
    return Case(text=text, label=label, marks=marks, finish=finish)


CASES = {
    "closed": _ok(r"<think>\boxed{1}</think>\boxed{2}"),
    "closed, no thoughts": _ok(r"<think></think>\boxed{2}"),
    "no marks": _ok(r"\boxed{2}"),
    "whitespace around marks and solution": _ok("  <think>\n\\boxed{1}\n</think> \n\t\\boxed{2}\n\n"),
    "letters whose lower case is longer": _ok(r"<think>İİİ \boxed{1}</think>\boxed{2}"),
    "nested": _ok(r"<think>a<think>\boxed{1}</think>\boxed{1}</think>\boxed{2}"),
    "nested, closed once": _ok(r"<think>a<think>\boxed{1}</think>\boxed{2}"),
    "two thoughts": _ok(r"<think>a</think>\boxed{1}<think>b</think>\boxed{2}"),
    "two closes": _ok(r"<think>a</think>\boxed{1}</think>\boxed{2}"),
    "close without open": _ok(r"\boxed{1}</think>\boxed{2}"),
    "close without open, opened by the prompt": _ok(r"\boxed{1}</think>\boxed{2}", OPENED),
    "open and close, opened by the prompt": _ok(r"<think>\boxed{1}</think>\boxed{2}", OPENED),
    "other marks are text": Case(
        text=r"<think>\boxed{1}</think>\boxed{2}",
        label=OK,
        solution=r"<think>\boxed{1}</think>\boxed{2}",
        answer="1 , 2",
        marks=LETTERLESS,
    ),
    "marks without letters": _ok(r"[[\boxed{1}]]\boxed{2}", LETTERLESS),
    "harmony": _ok(rf"{HARMONY.open}\boxed{{1}}<|end|><|start|>assistant{HARMONY.close}\boxed{{2}}", HARMONY),
    "one string for both": _ok(r"##\boxed{1}##\boxed{2}", SAME),
    "one string for both, twice": _ok(r"##a##\boxed{1}##b##\boxed{2}", SAME),
    "other case inside the thoughts": _ok(r"<think>a<THINK>b</Think>\boxed{1}</think>\boxed{2}"),
    "unclosed": _refused(r"<think>\boxed{1}", UNCLOSED),
    "unclosed, opened by the prompt": _refused(r"a \boxed{1}", UNCLOSED, OPENED),
    "unclosed at the end": _refused(r"\boxed{1}<think>", UNCLOSED),
    "unclosed and truncated": _refused(r"<think>\boxed{1}", UNCLOSED, finish="length"),
    "unclosed, marks without letters": _refused(r"[[\boxed{1}", UNCLOSED, LETTERLESS),
    "unclosed, harmony": _refused(rf"{HARMONY.open}\boxed{{1}}", UNCLOSED, HARMONY),
    "unclosed, one string for both": _refused(r"##\boxed{1}", UNCLOSED, SAME),
    "one string for both, closed and opened again": _refused(r"##a##\boxed{1}##b", UNCLOSED, SAME),
    "opened again inside the solution": _refused(r"<think>a</think>\boxed{1}<think>\boxed{1}", UNCLOSED),
    "opened again by the policy": _refused(r"a</think>\boxed{1}<think>\boxed{1}", UNCLOSED, OPENED),
    "opened in another case": _refused(r"<Think>a \boxed{1}", MALFORMED),
    "opened and closed in another case": _refused(r"<THINK>\boxed{1}</THINK>\boxed{1}", MALFORMED),
    "closed in another case": _refused(r"<think>\boxed{1}</Think>\boxed{1}", UNCLOSED),
    "closed in another case, opened by the prompt": _refused(r"a</THINK>\boxed{1}", UNCLOSED, OPENED),
    "closed in another case without open": _refused(r"\boxed{1}</Think>\boxed{1}", MALFORMED),
    "opened again in another case": _refused(r"<think>a</think>\boxed{1}<Think>\boxed{1}", MALFORMED),
    "closed again in another case": _refused(r"<think>a</think>\boxed{1}</THINK>\boxed{1}", MALFORMED),
    "another case and truncated": _refused(r"<Think>\boxed{1}", MALFORMED, finish="length"),
    "another case, harmony": _refused(rf"{HARMONY.open.upper()}\boxed{{1}}", MALFORMED, HARMONY),
    "empty": _refused("", EMPTY),
    "empty, opened by the prompt": _refused("", UNCLOSED, OPENED),
    "only thoughts": _refused(r"<think>\boxed{1}</think>", EMPTY),
    "whitespace after the thoughts": _refused("<think>\\boxed{1}</think> \n ", EMPTY),
    "only the opening mark": _refused("<think>", UNCLOSED),
    "only the closing mark": _refused("</think>", EMPTY),
    "thoughts only, truncated": _refused(r"<think>\boxed{1}</think>", TRUNCATED, finish="length"),
    "no answer": Case(text=r"<think>\boxed{1}</think>it is 2", label=NO_ANSWER, solution="it is 2"),
    # The rewards do not know how a call ended: a box before the limit counts, though no workspace shows it.
    "truncated in the solution": Case(
        text=r"<think>\boxed{1}</think>\boxed{2} and",
        label=TRUNCATED,
        solution=r"\boxed{2} and",
        answer="2",
        finish="length",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_workspaces_and_rewards_see_one_solution(case: Case):
    parts = split(case.text, finish=case.finish, marks=case.marks)
    assert (parts.label, parts.solution) == (case.label, case.solution)
    found = extract(case.text, Rules(forms=(), marks=case.marks))
    assert found.answer == case.answer
    assert found.reason or case.answer is not None


@pytest.mark.parametrize(
    ("text", "penalty"),
    [
        (r"<think>a</think>\boxed{2}", 0.0),
        (r"<think>a<Think>b</think>\boxed{2}", 0.0),  # no mark, and in the thoughts
        (r"<Think>a</Think>\boxed{2}", -1.0),
        (r"<think>a</think>\boxed{2}</THINK>", -1.0),
    ],
)
def test_the_format_term_counts_marks_by_the_same_rule(text: str, penalty: float):
    verdict = Verdict(status="correct", answer="2", found_by="box")
    item = RewardInput(verdict=verdict, completion=text, num_tokens=1, max_tokens=9)
    assert TERMS["format"]([item], ShapingOptions()) == [penalty]


def test_the_reason_tells_an_unclosed_thought_from_a_mark_in_another_case():
    assert extract(r"<think>\boxed{1}", Rules()).reason == "The thinking was never closed."
    assert "stands in another case" in extract(r"<Think>\boxed{1}", Rules()).reason


def test_the_usual_marks_are_the_schemas():
    config = ThinkingConfig()
    assert (config.open, config.close) == (USUAL.open, USUAL.close)


PIECES = ["<think>", "</think>", "<Think>", "</THINK>", r"\boxed{1}", "secret", " ", "İ"]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=8), opened=st.booleans())
def test_what_is_usable_holds_no_mark_in_any_case_and_stands_after_the_last_close(
    pieces: list[str], opened: bool
):
    text = "".join(pieces)
    marks = ThinkingMarks(opened_by_prompt=opened)
    parts = divide(text, marks)
    answer = extract(text, Rules(forms=(), marks=marks)).answer
    label = split(text, finish="stop", marks=marks).label
    if parts.solution is None:
        assert parts == Parts(thinking=text, solution=None, problem=parts.problem) and parts.problem == label
        assert answer is None
    else:
        assert text.endswith(parts.solution) and "think>" not in parts.solution.casefold()
        assert parts.solution == text or text.removesuffix(parts.solution).endswith("</think>")
        assert (answer is not None) == ("boxed" in parts.solution) == (label == OK)
