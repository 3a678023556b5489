"""Spells the base of a numeral as an index: ``101 (base 2)``, ``(101)_2``, ``101_{\\text{two}}``."""

import re

from rewards.answers.numerals import number_of_words

_BASE = r"(?P<base>\d{1,2}|[a-z]{3,9}(?:-[a-z]{3,5})?)"
_DIGITS = r"(?P<digits>[0-9A-Z]{1,200}(?:\.[0-9A-Z]{1,200})?)"
_INDEX = re.compile(rf"\(?\s*{_DIGITS}\s*\)?\s*_\s*\{{?\s*\(?\s*(?:base[\s-]*)?{_BASE}\s*\)?\s*\}}?")
_PHRASE = re.compile(rf"\(?\s*{_DIGITS}\s*\)?\s*,?\s*\(?\s*(?:in\s+)?base[\s-]*{_BASE}\s*\)?")


def with_index(text: str) -> str:
    """Returns a numeral with its base as an index in braces; any other text is returned unchanged."""
    match = _INDEX.fullmatch(text) or _PHRASE.fullmatch(text)
    if match is None or not re.search(r"\d", match["digits"]):
        return text
    base = int(match["base"]) if match["base"].isdigit() else number_of_words(match["base"])
    return text if base is None else f"{match['digits']}_{{{base}}}"
