"""Names of values: which of them say that two values are different ones, and which do not count."""

import re
from collections.abc import Iterable

_GREEK = "alpha|beta|gamma|delta|epsilon|eta|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega"
_VARIABLE = re.compile(rf"(?:[a-zA-Z]|\\(?:var)?(?:{_GREEK}))(?:_\{{?\w+\}}?)?'*")
_POINTS = re.compile(
    r"\|?(?:m?\\(?:angle|measuredangle|triangle|square|widehat|over(?:line|arc|rightarrow)))?\|?([A-Z]{2,4})\|?"
)
_EVENT = re.compile(r"[A-Z]\([A-Z](?:,[A-Z])*\)")


def occurs(name: str, sides: Iterable[str]) -> bool:
    """Returns True if a variable occurs in the other sides of its equation: ``x = 9x + 7`` names no value."""
    if not re.fullmatch("[a-zA-Z]", name):
        return False
    return any(re.search(rf"(?<![a-zA-Z\\\\]){name}(?![a-zA-Z])", side) for side in sides)


def denote_others(gold: str, answer: str) -> bool:
    """Returns True if two names denote different values: ``x`` and ``y``, ``AB`` and ``BC``.

    So do ``P(A)`` and ``P(B)``. Any other names, such as ``the area``, do not count.
    """
    kinds = [_kind(name) for name in (gold, answer)]
    return kinds[0] != kinds[1] and kinds[0][0] == kinds[1][0] != ""


def _kind(name: str) -> tuple[str, str]:
    """Returns what a name names and its canonical spelling; two empty texts if it does not count."""
    name = re.sub(r"^\\(?:vec|hat|bar|overrightarrow)(?=[a-zA-Z]$)", "", re.sub(r"[\s{}]", "", name))
    if _VARIABLE.fullmatch(name):
        return "indexed" if "_" in name else "variable", name  # ``x_0`` may be a value of ``x``
    if _EVENT.fullmatch(name):
        return "event", name
    if match := _POINTS.fullmatch(name):
        return "points", min(match[1], match[1][::-1])
    return "", ""
