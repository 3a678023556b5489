"""Votes among answers that may be written differently."""

from collections.abc import Awaitable, Callable, Sequence

Same = Callable[[str, str], Awaitable[bool]]
"""``await same(first, second)``: whether two answers are equivalent."""


async def equivalence_classes(answers: Sequence[str | None], same: Same) -> list[list[int]]:
    """Positions of equivalent answers, the largest class first, ties by first appearance.

    An answer joins the first class whose first member it is equivalent to. None votes for nothing: it is
    in no class.

    Args:
        answers: One for each voter, as it wrote it.
        same: Decides equivalence; asked only about answers that differ as text.
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
    return sorted(classes, key=len, reverse=True)
