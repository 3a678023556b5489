"""Exact plain numbers: integers, decimals, fractions, mixed numbers, number bases, units.

Uses only regular expressions and rational arithmetic on bounded sizes, which can neither hang nor exhaust
memory, so it may run in the calling process.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.answers.bases import with_index
from rewards.answers.numerals import number_of_words
from rewards.answers.units import is_currency, split_currency, split_scale, unit_suffix

MAX_DIGITS = 1000
"""Numbers with more digits or larger exponents are compared digit by digit, without arithmetic."""

MIN_FLOAT_DIGITS = 15
"""A decimal of at least this many digits may stand for a fraction that no decimal equals."""
MAX_FLOAT_DIGITS = 16
"""Digits after this many do not count: a float of 64 bits has no more."""

MIN_ROUNDED_PLACES = 6
"""A gold decimal with at least this many places may be the rounded form of an exact answer."""

# Possessive quantifiers (``++``) avoid backtracking: a numeral of 100,000 digits is read only once.
_PLAIN = (
    r"(?:\d{1,3}(?:,\d{3})++(?!\d)(?:\.\d++)?|\d{1,3}(?: \d{3})++(?!\d)(?:\.\d++)?"
    r"|\d++(?:\.\d*+)?|\.\d++)"
)
_INTEGER = r"[+\-]?\s*(?:\d{1,3}(?:,\d{3})++|\d++)"
_PATTERNS = {
    "repeating": re.compile(r"(?P<head>\d*+\.\d*+)\s*\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))"),
    "scientific": re.compile(
        rf"(?P<mantissa>{_PLAIN})\s*(?:(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{{\s*([+\-]?\d+)\s*\}}"
        r"|(\d))|[eE]([+\-]?\d+))"
    ),
    "base": re.compile(
        r"(?=[A-Za-z]{0,4}\d)(?P<digits>[0-9A-Za-z]{1,200}(?:\.[0-9A-Za-z]{1,200})?)\s*_\s*(?:\{\s*(\d{1,2})\s*\}|(\d))"
    ),
    "fraction": re.compile(
        rf"(?:(?P<whole>\d++)(?P<join>\s*(?=\\)|\s+(?=\d)))?(?:"
        rf"\\frac\s*(?:\{{\s*(?P<top>{_INTEGER}|-?\d*+\.\d++)\s*\}}|(?P<top1>\d))\s*"
        rf"(?:\{{\s*(?P<bottom>{_INTEGER}|-?\d*+\.\d++)\s*\}}|(?P<bottom1>\d))"
        rf"|\(?(?P<num>{_INTEGER}|\d*+\.\d++)\)?\s*/\s*\(?(?P<den>{_INTEGER}|\d*+\.\d++)\)?)"
    ),
    "plain": re.compile(_PLAIN),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """An exact number with the unit, currency and notation it was written with.

    Example: ``7.5\\%`` is ``value=Fraction(15, 2), percent=True``; ``4210_7`` is ``value=Fraction(1477),
    base=7``.
    """

    value: Fraction | tuple[str, str, int]
    """Exact value; numbers beyond ``MAX_DIGITS`` are (sign, digits, exponent)."""

    percent: bool = False
    degree: bool = False
    unit: str = ""
    currency: str = ""
    """Stored separately from the unit: ``\\$20 per hour`` has both."""
    base: int | None = None
    """Base of the numeral if it has an index other than 10; a part of the answer."""
    places: int = 0
    """Number of digits after the decimal point; 0 without one."""


def decimal_value(text: str, exponent: int = 0) -> Fraction | tuple[str, str, int]:
    """Returns the exact value of an unsigned decimal numeral times 10 ** exponent."""
    whole, _, part = text.replace(",", "").replace(" ", "").partition(".")
    exponent -= len(part)
    digits = (whole + part).lstrip("0")
    trimmed = digits.rstrip("0")
    exponent += len(digits) - len(trimmed)
    if not trimmed:
        return Fraction(0)
    if len(trimmed) <= MAX_DIGITS and abs(exponent) <= MAX_DIGITS:
        scale = 10 ** abs(exponent)
        return Fraction(int(trimmed) * scale) if exponent >= 0 else Fraction(int(trimmed), scale)
    return ("", trimmed, exponent)


def _negated(value: Fraction | tuple[str, str, int]) -> Fraction | tuple[str, str, int]:
    return -value if isinstance(value, Fraction) else ("-", *value[1:])


def _small(text: str) -> Fraction | None:
    text = text.replace(" ", "")
    value = decimal_value(text.lstrip("+-"))
    if not isinstance(value, Fraction):
        return None
    return -value if text.startswith("-") else value


def _ratio(match: re.Match[str]) -> Fraction | None:
    groups = match.groupdict()
    top = _small(groups["top"] or groups["top1"] or groups["num"])
    bottom = _small(groups["bottom"] or groups["bottom1"] or groups["den"])
    if top is None or not bottom:
        return None
    if groups["whole"] is None:
        return top / bottom
    whole = _small(groups["whole"])
    # A mixed number: ``2 \frac{1}{2}`` is 2.5, not a product.
    return None if whole is None or top < 0 or bottom < 0 else whole + top / bottom


def _in_base(digits: str, base: int) -> Fraction | None:
    if not 2 <= base <= 36 or len(digits) > MAX_DIGITS:
        return None
    whole, _, part = digits.partition(".")
    try:
        return Fraction(int(whole + part, base), base ** len(part))
    except ValueError:
        return None


def _number(text: str) -> tuple[Quantity, int] | None:
    """Returns the unsigned number at the start of the text and the position of its end."""
    if match := _PATTERNS["base"].match(text):
        base = int(match[2] or match[3])
        value = _in_base(match["digits"], base)
        if value is not None:
            return Quantity(value=value, base=None if base == 10 else base), match.end()
    if (match := _PATTERNS["fraction"].match(text)) and (ratio := _ratio(match)) is not None:
        return Quantity(value=ratio), match.end()
    if match := _PATTERNS["repeating"].match(text):
        head, cycle = match["head"], match[2] or match[3]
        # head + cycle / ((10^n - 1) 10^places) for a cycle of n digits after ``places`` places.
        start = decimal_value(head)
        if isinstance(start, Fraction) and len(cycle) <= MAX_DIGITS:
            places = len(head.partition(".")[2])
            return (
                Quantity(value=start + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)),
                match.end(),
            )
    if match := _PATTERNS["scientific"].match(text):
        exponent = match[2] or match[3] or match[4]
        if len(exponent) <= 12:
            return Quantity(value=decimal_value(match["mantissa"], int(exponent))), match.end()
    if match := _PATTERNS["plain"].match(text):
        value = decimal_value(match.group())
        return Quantity(value=value, places=len(match.group().partition(".")[2])), match.end()
    return None


def _spelled(text: str, is_gold: bool) -> Quantity | None:
    """Reads a number in words, in an answer also before a unit: ``five apples``."""
    words = text.split()
    for length in range(len(words), 0 if len(words) <= 8 and not is_gold else len(words) - 1, -1):
        value = number_of_words(" ".join(words[:length]))
        if value is not None:
            if any(number_of_words(word) is not None for word in words[length:]):
                return None  # ``six seven``
            factor, rest = split_scale("".join(f" {word}" for word in words[length:]))
            unit = unit_suffix(rest, is_gold=False) if rest else ""
            return None if unit is None else Quantity(value=Fraction(value * factor), unit=unit)
    return None


def parse_quantity(text: str, *, is_gold: bool = False) -> Quantity | None:
    """Parses a normalised text as a number with its unit; returns None if it is anything else.

    Args:
        text: An answer as ``latex.normalise`` returns it.
        is_gold: True for gold answers, where a letter directly after a number is a variable, not a unit.
    """
    if text[:1].isalpha() and (spelled := _spelled(text, is_gold)) is not None:
        return spelled
    if "_" in text or "base" in text:
        text = with_index(text)
    sign_length = len(text) - len(text.lstrip("+- "))
    currency, body = split_currency(text[sign_length:])
    sign = text[:sign_length]
    if currency:  # ``-\$5`` and ``\$-5``
        sign += body[: len(body) - len(body.lstrip("+- "))]
        body = body.lstrip("+- ")
    found = _number(body)
    if found is None:
        return None
    quantity, end = found
    factor, suffix = split_scale(body[end:])
    percent = bool(re.fullmatch(r"\s*(?:%|percent(?:age)?(?: points?)?|pct\.?)\s*", suffix, re.I))
    degree = bool(re.fullmatch(r"\s*(?:\^\\circ|degrees?)(?:\s*C)?\s*", suffix))
    unit: str | None = ""
    if not percent and not degree:
        unit = None if suffix[:1].isdigit() else unit_suffix(suffix, is_gold=is_gold)
        if unit is None:
            return None
        if is_currency(unit):
            currency, unit = unit, ""
    value = quantity.value
    if factor != 1:
        if not isinstance(value, Fraction):
            return None
        value *= factor
    if sign.count("-") % 2 and value != 0:
        value = _negated(value)
    return replace(quantity, value=value, percent=percent, degree=degree, unit=unit, currency=currency)


def other_unit(one: str, other: str) -> bool:
    """Returns True if two units contradict each other; a missing unit contradicts none."""
    return bool(one and other and one != other)


def _hundredth(value: Fraction | tuple[str, str, int]) -> Fraction | None:
    return value / 100 if isinstance(value, Fraction) else None


def same_quantity(*, gold: Quantity, answer: Quantity) -> bool:
    """Returns True if two numbers are the same answer, by the rules in the table of docs/rewards.md."""
    if other_unit(gold.unit, answer.unit) or other_unit(gold.currency, answer.currency):
        return False
    if gold.base != answer.base:
        return False
    if gold.value == answer.value:
        return True
    if gold.percent != answer.percent:
        # 50% equals both 50 and 0.5, but 50 is not 0.5. Equal numbers have returned above.
        percent, other = (gold, answer) if gold.percent else (answer, gold)
        return _hundredth(percent.value) == other.value
    return is_rounding(gold=gold, answer=answer) or is_float_of(gold=gold, answer=answer)


def is_rounding(*, gold: Quantity, answer: Quantity) -> bool:
    """Returns True if the gold is a long decimal that an exact answer (no decimal) rounds to."""
    if gold.places < MIN_ROUNDED_PLACES or answer.places:
        return False
    if not isinstance(gold.value, Fraction) or not isinstance(answer.value, Fraction):
        return False
    return 2 * abs(gold.value - answer.value) <= Fraction(1, 10**gold.places)


def is_float_of(*, gold: Quantity, answer: Quantity) -> bool:
    """Returns True if a decimal of 15 digits or more agrees with a gold fraction that no decimal equals.

    It agrees if it differs by less than one unit of its last digit (of its 16th, if it has more): it may be
    rounded or cut off.
    """
    if not isinstance(gold.value, Fraction) or not isinstance(answer.value, Fraction) or gold.places:
        return False
    denominator = gold.value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    digits = len(str(abs(int(answer.value * 10**answer.places)))) if answer.places else 0
    if denominator == 1 or digits < MIN_FLOAT_DIGITS:
        return False
    places = answer.places - max(0, digits - MAX_FLOAT_DIGITS)
    return abs(gold.value - answer.value) < Fraction(1, 10) ** places
