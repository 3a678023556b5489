"""Number words: ``five``, ``twenty-one``, ``three hundred and four``, ``two thousand``."""

import re

_ONES_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
"""
_ONES = {word: value for value, word in enumerate(_ONES_TEXT.split())}
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENS_TEXT.split(), start=2)}
_GROUPS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def number_of_words(text: str) -> int | None:
    """Returns the number that a text spells out; None if it is anything else."""
    words = [word for word in re.split(r"[\s\-]+", text.lower()) if word != "and"]
    if not words or text.lower().startswith("and") or len(words) > 20:
        return None
    total = group = 0
    previous = ""
    for word in words:
        if word in _GROUPS and group:
            total, group = total + group * _GROUPS[word], 0
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif word in _TENS and group % 100 == 0:
            group += _TENS[word]
        elif word in _ONES and (group % 100 == 0 or (previous in _TENS and 0 < _ONES[word] < 10)):
            group += _ONES[word]
        else:
            return None
        previous = word
    return total + group
