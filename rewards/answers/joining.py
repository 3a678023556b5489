"""Whether several answers in a row are one answer, a list, or each takes the one before it back."""

import re

Span = tuple[int, int, str]
"""Where an answer starts and ends in its text, and the answer."""

_CONNECTIVE = re.compile(
    r"(?i)\\q?quad|\\[,;:! ()\[\]]|\\\\|[\s$,;.:&*|\-]"
    r"|\b(?:and|or|also|maybe|perhaps|possibly|alternatively|either|else|even|both|the|an?|it|its|is|are"
    r"|could|might|may|can|be|answers?|as|well|otherwise|another|other|one|final|solutions?|so|if"
    r"|not|sure|possible|option|choice|respectively|with|to|equals?)\b"
    r"|[\u6216\u548c\u4e0e\u53ca\uff0c\u3001\u3002]"
)
# Between boxes also signs and labels: ``\boxed{1} \lor \boxed{2}``, ``(a) \boxed{1} (b) \boxed{2}``.
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
_WORD = re.compile(r"[^\W\d_]+")


def joined(spans: list[Span], text: str, *, are_boxes: bool = False) -> list[str]:
    """The last answer and those right before it that are connected to it; repeats are dropped.

    Args:
        spans: The answers in their order; at least one.
        text: What they stand in.
        are_boxes: A box is put on purpose: one stray word between two of them is no prose yet.
    """
    group = [spans[-1][2]]
    for index in range(len(spans) - 2, -1, -1):
        gap = text[spans[index][1] : spans[index + 1][0]]
        if not (_joins_boxes(gap) if are_boxes else _joins(gap)):
            break
        group.append(spans[index][2])
    return list(dict.fromkeys(reversed(group)))


def _joins(gap: str) -> bool:
    """Whether the text between two answers only connects them, so that both are given at once."""
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
