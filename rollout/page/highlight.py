"""Finds the drafts in the prompt that was built from them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.page.view import Segment

LEAST_CHARACTERS = 12
"""A part of a draft that is shorter than this is not recognised: it would be found anywhere."""

_Span = tuple[int, int]
"""Start and end of a part of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The solution of a call that a prompt may hold, whole or cut."""

    call: int
    text: str


def segments(prompt: str, drafts: Sequence[Draft]) -> tuple[Segment, ...]:
    """Returns a prompt as parts that were taken from drafts, and the text between them.

    Equal drafts take the places of their text in the order given, which is the order in which a workspace
    holds them. A draft at the start of the prompt may lack its own start (prompts are stored from their end),
    and one elsewhere its end (a workspace is bounded). The texts of the parts add up to ``prompt``.
    """
    taken: dict[_Span, int] = {}
    for find in (_whole, _cut):  # whole drafts first: a cut one must not take the place of another
        for draft in drafts:
            if draft.call not in taken.values() and (text := draft.text.strip()):
                span = find(prompt, text, list(taken))
                if span is not None:
                    taken[span] = draft.call
    parts: list[Segment] = []
    position = 0
    for (start, end), call in sorted(taken.items()):
        if start > position:
            parts.append(Segment(text=prompt[position:start]))
        parts.append(Segment(text=prompt[start:end], call=call))
        position = end
    if position < len(prompt):
        parts.append(Segment(text=prompt[position:]))
    return tuple(parts)


def _whole(prompt: str, text: str, taken: Sequence[_Span]) -> _Span | None:
    """Returns the first free place of ``text``, or None."""
    start = prompt.find(text)
    while start >= 0:
        end = start + len(text)
        if all(end <= first or start >= last for first, last in taken):
            return start, end
        start = prompt.find(text, start + 1)
    return None


def _cut(prompt: str, text: str, taken: Sequence[_Span]) -> _Span | None:
    """Returns the place of the end of ``text`` at the start of the prompt, or of its longest start."""
    longest = min(len(prompt), len(text))
    overlap = next((n for n in range(longest, 0, -1) if prompt.startswith(text[-n:])), 0)
    if overlap >= LEAST_CHARACTERS and _whole(prompt[:overlap], text[-overlap:], taken):
        return 0, overlap
    low, high = 0, len(text)
    while low < high:  # the shorter the start of a text, the more likely it is in the prompt: bisection
        middle = (low + high + 1) // 2
        if _whole(prompt, text[:middle], taken):
            low = middle
        else:
            high = middle - 1
    return _whole(prompt, text[:low], taken) if low >= LEAST_CHARACTERS else None
