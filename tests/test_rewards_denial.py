"""Whole solutions: denied answers, repeated prompts, answers in parts, and labels in other languages."""

import pytest

from rewards.answers.denial import is_denied
from rewards.answers.extract import Rules, extract
from rewards.scorer import Scorer


@pytest.mark.parametrize(
    "solution",
    [
        r"\boxed{7} is wrong",
        r"$\boxed{7}$ is clearly not correct.",
        r"\boxed{7}, which is incorrect",
        r"\boxed{7}. That cannot be right.",
        r"\boxed{7} isn't the right answer",
        r"The answer cannot be \boxed{7}.",
        r"It can't be $\boxed{7}$",
        r"It could be \boxed{7}.",
        r"This might also be \(\boxed{7}\)",
        r"So the answer is not \boxed{7}",
        r"It isn't equal to \boxed{7}.",
        "The answer cannot be 7",
        "It could be $7$",
        "So 7 is wrong.",
    ],
)
def test_an_answer_that_its_sentence_denies_is_not_rewarded(solution: str) -> None:
    with Scorer() as scorer:
        assert not scorer.score_sync(gold="7", completion=solution).is_correct


@pytest.mark.parametrize(
    "solution",
    [
        r"\boxed{7} is correct",
        r"The answer cannot be 8, so it is \boxed{7}.",
        r"It could be larger, but it is \boxed{7}.",
        r"The value is not obvious. We get \boxed{7}",
        r"Not all cases work; the result is \boxed{7} and this is the answer.",
        r"Other values are wrong. \boxed{7}",
        r"\boxed{7}. The other value is not possible.",
        r"It cannot be anything but \boxed{7}.",
    ],
)
def test_an_answer_that_its_sentence_affirms_counts(solution: str) -> None:
    with Scorer(forms=()) as scorer:
        assert scorer.score_sync(gold="7", completion=solution).is_correct


def test_the_words_next_to_an_answer_deny_it_and_no_others() -> None:
    assert is_denied("not 7", 4, 5)
    assert not is_denied("not 8 but 7", 10, 11)


def test_an_empty_box_of_the_prompt_is_ignored_and_a_last_empty_box_is_no_answer() -> None:
    rules = Rules(forms=())
    text = r"Put your answer in \boxed{}. The answer is \boxed{7}."
    assert extract(text, rules).answer == "7"
    assert extract(r"\boxed{} \boxed{7}", rules).answer == "7"
    assert extract(r"The answer is \boxed{7}. \boxed{}", rules).answer is None


@pytest.mark.parametrize(
    ("gold", "solution", "is_correct"),
    [
        ("1, 2", r"The width of it is \boxed{1}. Hence the length must be \boxed{2}.", True),
        ("(1, 2)", r"For part one we get \boxed{1}. For part two we find \boxed{2}.", True),
        ("(1, 2)", r"For part one we get \boxed{2}. For part two we find \boxed{1}.", False),
        ("1, 2", r"I think it is \boxed{1}. Wait, that is a mistake, it is \boxed{2}.", False),
        ("2", r"The width of it is \boxed{1}. Hence the length must be \boxed{2}.", True),
        ("(1, 2)", r"At first I thought of \boxed{(1,3)}. After more work I now find \boxed{(1,2)}.", True),
        ("1, 2", r"We found that \boxed{1} and later on \boxed{2} and at the end of it \boxed{3}.", False),
    ],
)
def test_boxes_are_the_parts_of_an_answer_if_the_gold_has_as_many(
    gold: str, solution: str, is_correct: bool
) -> None:
    with Scorer(forms=()) as scorer:
        assert scorer.score_sync(gold=gold, completion=solution).is_correct is is_correct


@pytest.mark.parametrize(
    "text",
    [
        "\u7b54\u6848\uff1a7",
        "\u7b54\u3048\uff1a7",
        "\uc815\ub2f5: 7",
        "\u041e\u0442\u0432\u0435\u0442: 7",
        "**R\u00e9ponse :** 7",
        "Respuesta: 7",
        "Resposta: 7",
        "Antwort: 7",
        "\u0627\u0644\u0625\u062c\u0627\u0628\u0629: 7",
        "\u0909\u0924\u094d\u0924\u0930: 7",
        "C\u00e2u tr\u1ea3 l\u1eddi: 7",
        "\u0e04\u0e33\u0e15\u0e2d\u0e1a: 7",
    ],
)
def test_the_marker_answer_is_read_in_other_languages(text: str) -> None:
    found = extract(f"So.\n{text}\n", Rules(forms=("marker",)))
    assert (found.answer, found.found_by) == ("7", "marker")
    assert extract(f"So.\n{text}\n", Rules(forms=())).answer is None


def test_the_order_of_lists_is_an_option_of_the_scorer() -> None:
    with Scorer(ordered_lists="true") as scorer:
        assert not scorer.equivalent_sync(gold="1, 2", answer="2, 1").is_correct
        assert not scorer.equivalent_sync(gold=r"\sqrt{8}, 1", answer=r"1, 2\sqrt{2}").is_correct
    with pytest.raises(ValueError, match="`ordered_lists` is 'yes'; choose from auto, true, false"):
        Scorer(ordered_lists="yes")
