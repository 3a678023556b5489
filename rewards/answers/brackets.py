"""Finds partners of brackets, splits outside brackets, and strips them; linear in the length of the text."""

import re
from functools import lru_cache


def matching_braces(text: str, openers: str = "{", closers: str = "}") -> dict[int, int]:
    """Maps positions of opening brackets to those of their partners; escaped braces count as text."""
    partners: dict[int, int] = {}
    stack: list[int] = []
    # Whole runs of brackets: a hostile text may have a hundred thousand of them.
    for match in _bracket_runs(openers, closers).finditer(text):
        start, end = match.span()
        if text[start] in openers:
            stack.extend(range(start, end))
        elif text[start] in closers and end - start == 1:
            if stack:
                partners[stack.pop()] = start
        elif text[start] in closers:
            kept = max(0, len(stack) - (end - start))
            partners.update(zip(reversed(stack[kept:]), range(start, end), strict=False))
            del stack[kept:]
    return partners


@lru_cache
def _bracket_runs(openers: str, closers: str) -> re.Pattern[str]:
    opening, closing = re.escape(openers), re.escape(closers)
    return re.compile(rf"\\[\\{opening}{closing}]|[{opening}]+|[{closing}]+")


def strip_outer(text: str) -> str:
    """Removes pairs of braces and parentheses around the whole text, and final punctuation.

    A pair with a comma or semicolon at its own level is kept: it is a set, tuple or interval.
    """
    # Bounded, since each layer costs a pass over the text.
    for _ in range(20):
        before = text
        text = text.strip().rstrip(".;, ").strip()
        text = re.sub(r"(?<!\\)(?:\\\\)*\\$", "", text)
        text = re.sub(r"^\*\*(.*)\*\*$", r"\1", text, flags=re.S)
        text = _strip_pairs(text)
        if text == before:
            break
    return text


def _is_enclosed(text: str) -> bool:
    """Returns True if the bracket at the start is closed by the last character; stops where it is closed."""
    depth = 0
    for match in _bracket_runs("{([", "})]").finditer(text):
        start, end = match.span()
        if text[start] in "{([":
            depth += end - start
        elif text[start] in "})]":
            depth -= end - start
            if depth <= 0:
                return depth == 0 and end == len(text)
    return False


_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_CYCLE = re.compile(r"(?!\d{1,3}(?: \d{3})+$)\d+(?: \d+)+")


def _strip_pairs(text: str) -> str:
    if not text or text[0] not in "{(" or not _is_enclosed(text):
        return text
    partners = matching_braces(text, "{([", "})]")
    first, last = 0, len(text) - 1
    while first < last and text[first] in "{(" and partners.get(first) == last:
        if text[first] + text[last] not in ("{}", "()"):
            break
        first, last = first + 1, last - 1
        while first < last and text[first] == " ":
            first += 1
        while first < last and text[last] == " ":
            last -= 1
    # Restore the innermost pair if it encloses a list or a cycle, such as ``(1 2 3)``.
    inner = text[first : last + 1]
    if first and text[0] == "{" and _THOUSANDS.fullmatch(inner):
        return inner
    if first and (len(split_top(inner, ",;")) > 1 or (text[0] == "(" and _CYCLE.fullmatch(inner))):
        opening = max(index for index in range(first) if text[index] in "{(")
        return text[opening : partners[opening] + 1]
    return inner


_OPENERS = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"}
_CLOSERS = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"}
_TOKEN = re.compile(r"\\begin\{[^{}]*\}|\\end\{[^{}]*\}|\\[a-zA-Z]+|\\.|.", re.S)


def top_tokens(text: str) -> list[tuple[int, str]]:
    """Returns the tokens outside all brackets and environments, each with its position."""
    tokens, depth = [], 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _OPENERS or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSERS or token.startswith("\\end"):
            depth = max(0, depth - 1)
        elif depth == 0:
            tokens.append((match.start(), token))
    return tokens


def split_top(text: str, separators: str | set[str]) -> list[str]:
    """Splits at separators outside all brackets and environments."""
    if not any(separator in text for separator in separators):
        return [text.strip()]
    parts, start = [], 0
    for position, token in top_tokens(text):
        if token in separators:
            parts.append(text[start:position].strip())
            start = position + len(token)
    return [*parts, text[start:].strip()]
