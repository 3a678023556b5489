"""The canonical spelling of an untrusted answer, at a bounded cost."""

import re

from rewards.answers.brackets import strip_outer
from rewards.answers.latex import ascii_spelling, is_plain_number, normalise
from rewards.answers.shapes import UnreadableError

MAX_RAW_CHARS = 60_000
MAX_CHARS = 5_000


def canonical_spelling(text: str) -> str:
    """Same as ``latex.normalise``, with limits for untrusted texts.

    Raises:
        UnreadableError: If it is too long for an answer; only plain numbers may be very long.
    """
    if len(text) > MAX_RAW_CHARS:
        raise UnreadableError(f"It is longer than {MAX_RAW_CHARS} characters.")
    text = _facing(normalise(text if is_plain_number(text) else _shortened(text)))
    if len(text) > MAX_CHARS and not is_plain_number(text):
        raise UnreadableError(f"It is longer than {MAX_CHARS} characters.")
    return text


def _shortened(text: str) -> str:
    """Returns a long text without its outer brackets and in ASCII, at no more than twice ``MAX_CHARS``.

    Normalising costs some fifty passes over a text, so the cheap steps come first.
    """
    if len(text) > MAX_CHARS:
        text = re.sub(r"\s+", " ", text)
        if len(text.strip("{}() $.,;")) <= 2 * MAX_CHARS:
            text = strip_outer(text)
    if MAX_CHARS // 10 < len(text) <= 2 * MAX_CHARS:
        text = ascii_spelling(text)  # one sign may become ten characters
    if len(text) > 2 * MAX_CHARS:
        raise UnreadableError(f"It is longer than {MAX_CHARS} characters.")
    return text


def _facing(text: str) -> str:
    """Returns intervals with brackets that face outwards, ``]0, 1[``, with round brackets in their place."""
    if text[:1] != "]" and text[-1:] != "[":
        return text
    places = [place for place, sign in enumerate(text) if sign in "[]"]
    if len(places) % 2 or re.search(r"[()]", text):
        return text
    signs = list(text)
    for number, place in enumerate(places):
        is_open_end = text[place] == ("[" if number % 2 else "]")
        signs[place] = "()"[number % 2] if is_open_end else text[place]
    return "".join(signs)
