"""``rewards.score``: one answer against one gold answer."""

import pytest

import rewards


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("\\frac{1}{2}", "0.5", "correct"),
        ("So it is \\boxed{42}.", "42", "correct"),
        ("42", "41", "wrong"),
        ("42", "}{", "unparsable"),
        ("42", None, "unparsable"),
    ],
)
def test_a_verdict_is_that_of_the_scorer(gold: str, answer: str | None, status: str):
    verdict = rewards.score(gold=gold, answer=answer)
    assert isinstance(verdict, rewards.Verdict)
    assert (verdict.status, verdict.answer) == (status, answer)
    assert verdict.is_correct == (status == "correct")


@pytest.mark.component
def test_algebra_is_done_in_the_scorers_processes():
    assert rewards.score(gold="x^2 - 1", answer="(x - 1)(x + 1)").status == "correct"
    assert rewards.score(gold="x^2 - 1", answer="(x - 1)(x - 1)").status == "wrong"


@pytest.mark.parametrize("gold", ["", "\\boxed{}", "\\frac{1}{0}"])
def test_a_gold_that_is_no_answer_is_refused(gold: str):
    with pytest.raises(ValueError, match="gold answer"):
        rewards.score(gold=gold, answer="1")
