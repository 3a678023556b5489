"""Laws of the reward terms."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.shaping import (
    TERMS,
    RewardInput,
    Shaper,
    ShapingOptions,
    copied_share,
    length_bonus,
    outcome,
    overlong_penalty,
    repetition_penalty,
)
from rewards.verdict import STATUSES, Verdict

CORRECT = Verdict(status="correct", answer="1", found_by="box")
WRONG = Verdict(status="wrong", answer="2", found_by="box")
WORDS = " ".join(f"word{number}" for number in range(60))


def item(
    verdict: Verdict = CORRECT, completion: str = r"\boxed{1}", tokens: int = 10, **fields
) -> RewardInput:
    return RewardInput(verdict=verdict, completion=completion, num_tokens=tokens, max_tokens=100, **fields)


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_correct_verdict_earns_the_outcome(status: str) -> None:
    assert outcome(Verdict(status=status), wrong_reward=-1.0) == (1.0 if status == "correct" else -1.0)
    assert outcome(Verdict(status=status), wrong_reward=0.0) == (1.0 if status == "correct" else 0.0)


def test_a_custom_number_is_the_outcome() -> None:
    assert outcome(Verdict(status="correct", value=0.25), wrong_reward=-1.0) == 0.25


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 200), st.integers(1, 300))
def test_the_overlong_penalty_falls_from_0_to_minus_1_and_never_rises(
    tokens: int, limit: int, buffer: int
) -> None:
    penalty = overlong_penalty(tokens, max_tokens=limit, buffer=buffer)
    assert -1.0 <= penalty <= 0.0
    assert overlong_penalty(tokens + 1, max_tokens=limit, buffer=buffer) <= penalty
    assert overlong_penalty(max(0, limit - buffer), max_tokens=limit, buffer=buffer) == 0.0
    assert overlong_penalty(limit, max_tokens=limit, buffer=buffer) == -1.0


def test_the_overlong_penalty_is_linear_in_its_buffer() -> None:
    assert overlong_penalty(90, max_tokens=100, buffer=20) == -0.5


def test_repetition_counts_the_share_of_repeated_word_sequences() -> None:
    assert repetition_penalty(WORDS, num_words=20) == 0.0
    assert repetition_penalty("again " * 119, num_words=20) == pytest.approx(-0.99)
    assert repetition_penalty("short", num_words=20) == 0.0


def test_length_compares_only_correct_completions() -> None:
    group = [item(tokens=10), item(tokens=20), item(tokens=30), item(WRONG, tokens=1)]
    assert length_bonus(group) == [0.5, 0.0, -0.5, 0.0]
    assert length_bonus([item(tokens=10), item(WRONG, tokens=20)]) == [0.0, 0.0]
    assert length_bonus([item(WRONG), item(WRONG)]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "verdict", "penalty"),
    [
        (r"<think>a</think>\boxed{1}", CORRECT, 0.0),
        (r"\boxed{1}", WRONG, 0.0),
        (r"<think>a</think><think>b</think>\boxed{1}", CORRECT, -1.0),
        (r"<think>\boxed{1}", Verdict(status="unparsable"), -1.0),
        ("the answer is 1", Verdict(status="correct", answer="1", found_by="marker"), -1.0),
    ],
)
def test_format_asks_for_closed_thinking_and_one_box(
    completion: str, verdict: Verdict, penalty: float
) -> None:
    assert TERMS["format"]([item(verdict, completion)], ShapingOptions()) == [penalty]


def test_a_copied_draft_is_penalised_and_a_rewritten_one_is_not() -> None:
    rewritten = " ".join(reversed(WORDS.split()))
    group = [
        item(completion=f"<think>x</think>{text}", drafts=("other", WORDS)) for text in (WORDS, rewritten)
    ]
    assert TERMS["copy"](group, ShapingOptions()) == [-1.0, 0.0]
    assert TERMS["copy"]([item(completion=WORDS)], ShapingOptions()) == [0.0]


@settings(deadline=None)
@given(st.text(max_size=200), st.lists(st.text(max_size=200), max_size=3))
def test_the_copied_share_is_a_share_and_grows_with_more_drafts(text: str, drafts: list[str]) -> None:
    share = copied_share(text, drafts, num_words=3)
    assert 0.0 <= share <= copied_share(text, [*drafts, text], num_words=3) <= 1.0


@pytest.mark.parametrize(
    ("role", "summary", "penalty"),
    [
        ("distil", "The key step is to factor; attempt 2 slips on the sign.", 0.0),
        ("distil", "All agree that the answer is 7.", -1.0),
        ("distil", r"They get \boxed{7}.", -1.0),
        ("refine", r"They get \boxed{7}.", 0.0),
    ],
)
def test_a_workspace_summary_may_not_state_the_answer(role: str, summary: str, penalty: float) -> None:
    assert TERMS["leak"]([item(completion=summary, role=role)], ShapingOptions()) == [penalty]


def test_the_total_is_the_sum_of_the_weighted_parts() -> None:
    shaper = Shaper(weights={"outcome": 1.0, "overlong": 0.5, "length": 0.0})
    rewards = shaper([item(tokens=100), item(WRONG, tokens=10)])
    assert rewards[0].parts == {"outcome": 1.0, "overlong": -0.5} and rewards[0].total == 0.5
    assert rewards[1].total == -1.0 + rewards[1].parts["overlong"]


def test_with_the_outcome_alone_no_text_changes_the_reward() -> None:
    shaper = Shaper(weights={"outcome": 1.0})
    group = [item(completion="a" * 500, tokens=100), item(completion="b", tokens=1, drafts=("b",))]
    assert [reward.total for reward in shaper(group)] == [1.0, 1.0]


def test_an_unknown_term_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"lenght.*choose from outcome, overlong"):
        Shaper(weights={"lenght": 1.0})
    with pytest.raises(ValueError, match="every reward would be 0"):
        Shaper(weights={"outcome": 0.0})


@pytest.mark.parametrize(
    ("name", "value"), [("overlong_buffer", 0), ("copy_share", 0.0), ("wrong_reward", 1.0)]
)
def test_a_constant_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        ShapingOptions(**{name: value})


@pytest.mark.parametrize(
    ("verdict", "drafts", "gain"),
    [
        (CORRECT, ("wrong", "wrong"), 1.0),
        (CORRECT, ("correct", "wrong"), 0.5),
        (CORRECT, ("correct", "correct"), 0.0),
        (WRONG, ("correct", "timeout"), -0.5),
        (WRONG, ("wrong",), 0.0),
        (CORRECT, (), 0.0),
        (Verdict(status="error"), ("correct",), 0.0),
    ],
)
def test_the_gain_is_what_a_refinement_adds_to_the_share_of_right_drafts(
    verdict: Verdict, drafts: tuple[str, ...], gain: float
) -> None:
    assert TERMS["gain"]([item(verdict, draft_statuses=drafts)], ShapingOptions()) == [gain]
