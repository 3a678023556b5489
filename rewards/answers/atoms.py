"""Reads single answers that are not plain numbers: expressions with their units, words, times, figures."""

import re

from rewards.answers.intervals import REAL_LINE
from rewards.answers.notation import CLOCK, is_clock_only, is_cycles, is_promotion
from rewards.answers.shapes import Expression, Shape, Text, UnreadableError
from rewards.answers.units import split_unit
from rewards.answers.wording import has_word, is_algebra

_BARE_FUNCTION = re.compile(
    r"(?<![a-zA-Z\\])(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![a-z])"
    r"|(?<![a-zA-Z\\])(?:log|ln|exp|gcd|lcm|max|min|sqrt|frac|det|lim)(?![a-z])"
)
_FIGURE = re.compile(
    r"(\\(?:angle|measuredangle|triangle|square|widehat|over(?:line|arc|rightarrow|leftrightarrow)))"
    r"\s*\{?\s*([A-Z]{2,4})\s*\}?"
)
_DIFFERENTIALS = re.compile(r"(?<![a-zA-Z\\])[a-z]?(?:d[a-z]){2,3}(?![a-zA-Z])")
"""``dxdy`` at the end of an integral, which is no word."""
_DIVISION_BY_ZERO = re.compile(r"\\frac\s*\{[^{}]*\}\s*\{\s*0+\s*\}|/\s*0+(?![\d./-])")

_REAL_LINE = re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R)|(?:the set of )?(?:all )?(?:reals|real numbers)", re.I)


def read_atom(text: str, *, is_gold: bool) -> Shape:
    """Reads a text without separators, relations or outer brackets.

    Args:
        text: A spelling as ``latex.normalise`` returns it.
        is_gold: True for gold answers, whose letters are variables only if something shows it.

    Raises:
        UnreadableError: If it divides by zero.
    """
    clock = CLOCK.fullmatch(text)
    if (clock and clock[3]) or is_promotion(text) or (is_gold and (is_clock_only(text) or is_cycles(text))):
        return Text(text=text)
    if _REAL_LINE.fullmatch(text):
        return REAL_LINE
    if figure := _FIGURE.fullmatch(text):
        # Text, as algebra would read its points as a product. All but rays may be named in either direction.
        points = figure[2] if "rightarrow" in figure[1] else min(figure[2], figure[2][::-1])
        return Text(text=f"{figure[1]} {points}")
    if _DIVISION_BY_ZERO.search(text):
        raise UnreadableError("It divides by zero.")
    if re.fullmatch(r"[A-Za-z]|\(?\s*[A-J]\s*\)", text):
        return Expression(text=text.strip("() "))
    if is_gold and not is_algebra(text):
        return Text(text=text)
    text, unit = split_unit(text)
    bare = _BARE_FUNCTION.sub(" ", _DIFFERENTIALS.sub(" ", text) if r"\int" in text else text)
    if has_word(re.sub(r"\\(?:begin|end)\{\w+\}|_\{[a-zA-Z]+\}", " ", bare)):
        return Text(text=text)
    return Expression(text=_BARE_FUNCTION.sub(lambda match: "\\" + match.group(), text), unit=unit)
