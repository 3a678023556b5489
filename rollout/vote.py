"""Groups answers that are equivalent but written differently, for votes."""

from collections.abc import Awaitable, Callable, Sequence

from rollout.policy import Policy

Same = Callable[[str, str], Awaitable[bool]]
"""``await same(first, second)`` returns True if two answers are equivalent."""


async def equivalence_classes(answers: Sequence[str | None], same: Same) -> list[list[int]]:
    """Returns classes of positions of equivalent answers, the largest first, ties by first appearance.

    An answer joins the first class whose first member is equivalent to it. None is in no class.

    Args:
        answers: One answer per voter, as written; None for a voter without an answer.
        same: Decides equivalence; called only for answers that differ as text.
    """
    classes: list[list[int]] = []
    for position, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            first = answers[members[0]]
            assert first is not None, "a class holds answers"
            if answer == first or await same(first, answer):
                members.append(position)
                break
        else:
            classes.append([position])
    # The sort is stable, also in reverse: classes of equal size keep their order of appearance.
    return sorted(classes, key=len, reverse=True)


async def largest_class(policy: Policy, attempts: Sequence[int]) -> list[int]:
    """Returns the attempts with the most frequent answer; a tie goes to the answer that appears first.

    Empty if no attempt has an answer.
    """
    classes = await equivalence_classes([policy.final_answer(call) for call in attempts], policy.same)
    return [attempts[place] for place in classes[0]] if classes else []
