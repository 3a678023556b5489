"""Decides if successive answers form one answer, a list, or if each replaces the one before."""

import itertools
import re

Span = tuple[int, int, str]
"""Start and end of an answer in its text, and the answer."""

_CONNECTIVE = re.compile(
    r"(?i)\\q?quad|\\[,;:! ()\[\]]|\\\\|[\s$,;.:&*|\-]"
    r"|\b(?:and|or|also|maybe|perhaps|possibly|alternatively|either|else|even|both|the|an?|it|its|is|are"
    r"|could|might|may|can|be|answers?|as|well|otherwise|another|other|one|final|solutions?|so|if"
    r"|not|sure|possible|option|choice|respectively|with|to|equals?)\b"
    r"|[\u6216\u548c\u4e0e\u53ca\uff0c\u3001\u3002]"
)
# Between boxes, signs and labels connect, too: ``\boxed{1} \lor \boxed{2}``, ``(a) \boxed{1} (b) \boxed{2}``.
_BETWEEN_BOXES = re.compile(
    r"(?i)[/+=<>~]|\\(?:lor|vee|land|wedge|cup|to|sim|approx|(?:long)?(?:left)?rightarrow|implies|iff|mid)"
    r"(?![a-z])|\(\s*(?:\d{1,2}|[a-z]|[ivx]{1,4})\s*\)|\b(?:\d{1,2}|[a-h]|[ivx]{1,4})\s*[.:)]"
    r"|\b(?:answer|option|choice|solution|case|part|candidate|guess|value|root)s?\s*\d{1,2}\b"
    r"|\b(?:first|second|third|next|then|vs|versus)\b"
)
_REVISION = re.compile(
    r"(?i)\b(?:wait|no|nope|hm+|correction|corrected|actually|sorry|oops|mistake|error|wrong|rather|instead"
    r"|revised?|recheck(?:ed)?|check(?:ed|ing)?|now|hence|thus|therefore|because|since)\b|[\u4e0d\u9519]"
)
_RETRACTION = re.compile(
    r"(?i)\b(?:wait|no|nope|hm+|correction|corrected|actually|sorry|oops|mistake|error|wrong|rather|instead"
    r"|revised?|recheck(?:ed)?)\b|[\u4e0d\u9519]"
)
MAX_JOINED = 100
"""Number of joined answers beyond which no more are looked for: a gold has fewer."""
_WORD = re.compile(r"[^\W\d_]+")


def joined(spans: list[Span], text: str, *, are_boxes: bool = False) -> list[str]:
    """Returns the last answer and those before it that are connected to it, without repeats.

    Args:
        spans: The answers in order; at least one.
        text: The text that contains them.
        are_boxes: True for boxes. They are deliberate, so one other word between two does not separate them.
    """
    group = [spans[-1][2]]
    for index in range(len(spans) - 2, -1, -1):
        gap = text[spans[index][1] : spans[index + 1][0]]
        if not (_joins_boxes(gap) if are_boxes else _joins(gap)):
            break
        group.append(spans[index][2])
        if len(group) > MAX_JOINED:
            break
    return list(dict.fromkeys(reversed(group)))


def parts(spans: list[Span], text: str, count: int) -> list[str] | None:
    """Returns all answers if there are ``count`` of them, each a single value, and none retracts another."""
    if (
        count < 2
        or len(spans) != count
        or any(re.search(r"[,;]|\\pm|\bor\b|\band\b", span[2]) for span in spans)
    ):
        return None
    gaps = (text[before[1] : after[0]] for before, after in itertools.pairwise(spans))
    return None if any(_RETRACTION.search(gap) for gap in gaps) else [span[2] for span in spans]


def _joins(gap: str) -> bool:
    """Returns True if the text between two answers only connects them, so that both count."""
    return len(gap) <= 120 and not _CONNECTIVE.sub("", _without_fonts(gap))


def _joins_boxes(gap: str) -> bool:
    if len(gap) > 120:
        return False
    gap = _without_fonts(gap)
    left = _CONNECTIVE.sub(" ", _BETWEEN_BOXES.sub(" ", gap))
    words = _WORD.findall(left)
    if re.search(r"[^\s()!?'\"\u2014]", _WORD.sub("", left)):
        return False
    is_sentence = len(words) > 1 or any(not word.isascii() and len(word) > 4 for word in words)
    return not is_sentence and (not words or not _REVISION.search(gap))


def _without_fonts(gap: str) -> str:
    return re.sub(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}", r" \1 ", gap)
