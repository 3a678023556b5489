"""Dates, times of day, durations and permutations in cycle notation, which are read as what they are."""

import math
import re

CLOCK = re.compile(r"(\d{1,2}) ?: ?(\d{2}(?: ?: ?\d{2})?(?:\.\d+)?)(?:\s*([ap])\.?\s?m\.?)?", re.I)
"""A time of day or a duration; minutes and seconds have two digits."""
_DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})")
_PROMOTION = re.compile(r"(?:[a-h]x)?[a-h][18]=[QRBN][+#]?")
_CONGRUENCE = re.compile(
    r"(?:(?P<left>[^=<>]+?)\\equiv(?![a-zA-Z]))?(?P<right>[^=<>]+?),?\s*\(?\s*"
    r"(?:\\p(?:mod|od)|(?P<operator>\\b?mod|mod))(?![a-zA-Z])\s*"
    r"\{?\s*(?P<modulus>[^{}()]+?)\s*\}?\s*\)?"
)
_CYCLES = re.compile(r"(?:\(\s*\d+(?:[\s,]+\d+)*\s*\)\s*)+")


def is_promotion(text: str) -> bool:
    """Returns True for the chess move of a pawn that becomes a piece, ``e8=Q``, which is no equation."""
    return bool(_PROMOTION.fullmatch(text))


def congruence(text: str) -> str | None:
    """Returns ``x \\equiv 13 \\pmod{8}`` in canonical spelling, with 5 for 13; None for any other text.

    The modulus is a part of the answer, whose relation is no equation.
    """
    match = _CONGRUENCE.fullmatch(text)
    if match is None or (match["operator"] and not match["left"]):
        return None  # ``13 \\bmod 8`` is a number
    left, right, modulus = (re.sub(r"\s", "", match[name] or "") for name in ("left", "right", "modulus"))
    if re.fullmatch(r"-?\d{1,100}", right) and re.fullmatch(r"[1-9]\d{0,99}", modulus):
        right = str(int(right) % int(modulus))
    return rf"{left} \equiv {right} \pmod {modulus}"


def is_clock_only(text: str) -> bool:
    """Returns True if a text is a time and cannot be a ratio: a ratio is in lowest terms, without zeros."""
    match = CLOCK.fullmatch(text)
    if match is None or not _is_sexagesimal(match[2]):
        return False
    if match[3] or match[1].startswith("0") or ":" in match[2] or match[2].startswith("0"):
        return True
    return math.gcd(int(match[1]), int(match[2])) != 1


def is_cycles(text: str) -> bool:
    """Returns True for a permutation in cycle notation, such as ``(1 2 3)(4 5)``."""
    return bool(_CYCLES.fullmatch(text)) and bool(re.search(r"\d[\s,]+\d|\d\s*\)\s*\(", text))


def same_notation(*, gold: str, answer: str) -> bool | None:
    """Compares texts by the notation of the gold; None if it has none of these notations."""
    if (date := _date(gold)) is not None:
        return date == _date(answer)
    if is_cycles(gold):
        return bool(_CYCLES.fullmatch(answer)) and _cycles(gold) == _cycles(answer)
    clocks = _clock(gold), _clock(answer)
    if clocks[0] is None:
        return None
    if clocks[1] is None:
        return False if is_clock_only(gold) else None
    return _same_clock(clocks[0], clocks[1])


def _date(text: str) -> tuple[str, int, int, int] | None:
    match = _DATE.fullmatch(text)
    if match is None or {len(match[1]), len(match[4])} & {3} or len(match[1]) == len(match[4]) == 4:
        return None
    if len(match[1]) != 4 and len(match[4]) != 4 and match[2] == ".":
        return None  # a version
    order = "year first" if len(match[1]) == 4 else match[2]
    return order, int(match[1]), int(match[3]), int(match[4])


def _cycles(text: str) -> frozenset[tuple[int, ...]]:
    """Returns the cycles, each beginning with its smallest number; cycles of one number change nothing."""
    found: set[tuple[int, ...]] = set()
    for group in re.findall(r"\(([^()]*)\)", text):
        numbers = [int(number) for number in re.findall(r"\d+", group)]
        if len(numbers) == 1 and len(numbers[0].__str__()) > 1:
            numbers = [int(digit) for digit in str(numbers[0])]  # ``(123)(45)``
        start = numbers.index(min(numbers))
        if len(numbers) > 1:
            found.add((*numbers[start:], *numbers[:start]))
    return frozenset(found)


def _is_sexagesimal(rest: str) -> bool:
    return all(float(part) < 60 for part in rest.split(":"))


def _clock(text: str) -> tuple[int, str, str] | None:
    match = CLOCK.fullmatch(text)
    if match is None or not _is_sexagesimal(match[2]):
        return None
    return int(match[1]), match[2].replace(" ", ""), (match[3] or "").lower()


def _same_clock(gold: tuple[int, str, str], answer: tuple[int, str, str]) -> bool:
    """Compares times of day; a missing a.m. or p.m. matches both, and 20:34 is 8:34 p.m."""
    if gold[1] != answer[1]:
        return False
    if gold[2] and answer[2]:
        return (gold[0] % 12, gold[2]) == (answer[0] % 12, answer[2])
    for marked, plain in ((gold, answer), (answer, gold)):
        if marked[2] and plain[0] > 12:
            return marked[2] == "p" and marked[0] % 12 == plain[0] - 12
    return gold[0] % 12 == answer[0] % 12 if gold[2] or answer[2] else gold[0] == answer[0]
