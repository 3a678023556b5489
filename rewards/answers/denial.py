"""Recognises an answer that its own sentence denies or leaves open: such an answer is not given."""

import re

_REACH = 80
"""Number of characters before and after an answer that are looked at."""
_NO = r"(?:wrong|incorrect|false|impossible|invalid|mistaken|ruled\s+out)"
_YES = r"(?:right|correct|possible|valid|true|allowed|(?:the|an|our|my)\s+(?:\w+\s+)?(?:answer|result))"
_BEFORE = re.compile(
    r"(?i)(?:\b(?:not|never|cannot|neither|nor|\w+n['\u2019]t)(?:\s+(?:be|equal|to|the|answer|simply|just))*"
    r"|\b(?:could|might|may)(?:\s+(?:also|well|possibly|perhaps|then))*\s+be(?:\s+(?:the\s+answer|equal\s+to))?)"
    r"[\s:*$\"'(\[\\]*$"
)
"""``is not 7``, ``cannot be 7``, ``could be 7``."""
_AFTER = re.compile(
    r"(?i)[\s$\\)\]*\"',]*(?:(?:[.!]\s*|but\s+)?(?:which|that|this|it)\s+)?"
    rf"(?:(?:is|was|seems|looks|must\s+be|would\s+be)\s+(?:\w+ly\s+)?(?:{_NO}|not\s+(?:\w+ly\s+)?{_YES})"
    rf"|(?:is|was)n['\u2019]t\s+(?:\w+ly\s+)?{_YES}|can(?:no|['\u2019])t\s+be\s+{_YES})\b"
)
"""``7 is wrong``, ``7, which is not correct``, ``7. That cannot be right``."""


def is_denied(text: str, start: int, end: int) -> bool:
    """Returns True if the words next to the answer at ``text[start:end]`` deny it or leave it open."""
    before, after = text[max(0, start - _REACH) : start], text[end : end + _REACH]
    return bool(_BEFORE.search(before) or _AFTER.match(after))
