"""Parses the structure of an answer from its brackets and separators.

The meaning of expressions is left to ``symbolic``. The time is linear in the length of the text at each level
of nesting, and nesting is limited.
"""

import re
from functools import lru_cache

from rewards.answers.atoms import read_atom
from rewards.answers.brackets import split_top, strip_outer, top_tokens
from rewards.answers.intervals import REAL_LINE, condition_of, punctured_line, with_setminus
from rewards.answers.naming import occurs
from rewards.answers.notation import congruence, is_cycles, is_promotion
from rewards.answers.quantity import parse_quantity
from rewards.answers.shapes import (
    Compound,
    Expression,
    Interval,
    Matrix,
    Named,
    Number,
    Relation,
    Shape,
    Text,
    UnreadableError,
)
from rewards.answers.spelling import canonical_spelling

MAX_DEPTH = 12
MAX_ITEMS = 64

_SIGNS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\equiv", r"\sim"}
_HAS_SIGN = re.compile(r"[=<>]|\\(?:le|ge|ne|approx|in|equiv|sim)(?![a-zA-Z])")
_NAME = re.compile(
    r"""(?x)
    (?:[a-zA-Z]|\\(?!frac|sqrt|sin|cos|tan|sec|csc|cot|log|ln|cdot|times|cup|cap|pm|mp|pi|infty)[a-zA-Z]+)
    (?:_\{?\w+\}?)?'*                                                           # x, x_1, \theta
    (?:\s*\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\))?                            # f(x), P(A)
    | \\(?:vec|hat|bar|overrightarrow)\s*\{?\s*[a-zA-Z]\s*\}?                      # \vec{v}
    | \|\s*[A-Z]{1,2}\s*\|                                                       # |AB|
    | (?:\\(?:overline|angle|triangle|measuredangle|widehat)\s*)?\{?[A-Z]{2,4}\}? # AB, \angle ABC
    | [A-Z](?:_\{?\w+\}?)?\s*:\s*[A-Z](?:_\{?\w+\}?)?                            # A:B
    | \(?\s*[a-zA-Z](?:_\{?\w+\}?)?(?:\s*,\s*[a-zA-Z](?:_\{?\w+\}?)?)+\s*\)?     # (x, y)
    | [A-Za-z][A-Za-z ]{2,40}                                                    # the area
    """
)
_OPERATORS = re.compile(r"\\(?:cdot|times|cup|cap|pm|mp|to)(?![a-zA-Z])")
_QUOTED = re.compile(r"""(['"])([^'"]+)\1""")
_CONNECTIVES = re.compile(r"(?<![\\a-zA-Z])(?:or|and)(?![a-zA-Z])", re.I)
_ENVIRONMENT = re.compile(
    r"\s*\\begin\{(\w*matrix\*?|array|cases|aligned)\}(?:\s*\{[lcr|: ]*\})?(.*)\\end\{\1\}\s*", re.S
)
_PREFIX = re.compile(
    r"^(?:(?:the|my|our|final|so|thus|therefore|correct)\s+)*(?:answer|result|option|choice|value)"
    r"s?(?:\s*(?:is\b|are\b|:|=)\s*:?\s*|\s+(?=[\d\\(\[+\-]|[A-J]\b))(?=\S)",
    re.I,
)


def parse_shape(text: str, *, is_gold: bool = False) -> Shape:
    """Parses the structure of one answer as written.

    Raises:
        UnreadableError: If it is empty, too long, too deeply nested, or has too many items.
    """
    return parse_spelling(canonical_spelling(text), is_gold=is_gold)


@lru_cache(maxsize=2048)
def parse_spelling(text: str, *, is_gold: bool = False) -> Shape:
    """Same as ``parse_shape``, for a text returned by ``canonical_spelling``."""
    text = _PREFIX.sub("", text)
    return _parse(strip_outer(text), is_gold=is_gold, depth=0)


def _parse(text: str, *, is_gold: bool, depth: int) -> Shape:
    if depth > MAX_DEPTH:
        raise UnreadableError(f"It is nested more than {MAX_DEPTH} levels deep.")
    if not text or not re.search(r"[^\W_]|\\[a-zA-Z]{2}", _OPERATORS.sub("", text)):
        raise UnreadableError("It is empty.")
    if quoted := _QUOTED.fullmatch(text):
        quantity = parse_quantity(quoted[2].strip(), is_gold=is_gold)
        inner = quoted[2].strip()
        return Number(quantity=quantity, text=inner) if quantity else Text(text=inner)
    if quantity := parse_quantity(text, is_gold=is_gold):
        return Number(quantity=quantity, text=text)
    # From the weakest binding to the strongest: a list of relations, not a relation between lists.
    for reader in (_read_list, _read_relation, _read_union, _read_brackets, _read_matrix, _read_plus_minus):
        shape = reader(text, is_gold, depth + 1)
        if shape is not None:
            return shape
    return read_atom(text, is_gold=is_gold)


def _parse_all(parts: list[str], is_gold: bool, depth: int) -> tuple[Shape, ...]:
    if len(parts) > MAX_ITEMS:
        raise UnreadableError(f"It lists more than {MAX_ITEMS} answers.")
    shapes = [
        _parse(stripped, is_gold=is_gold, depth=depth) for part in parts if (stripped := strip_outer(part))
    ]
    flat: list[Shape] = []
    for shape in shapes:
        # ``1 \pm \sqrt{2}, 3`` is three values.
        is_list = isinstance(shape, Compound) and shape.kind == "list"
        flat.extend(shape.items if is_list and isinstance(shape, Compound) else [shape])
    return tuple(flat)


def _split_connectives(text: str) -> list[str]:
    """Splits at the words ``or`` and ``and`` outside brackets."""
    matches = list(_CONNECTIVES.finditer(text))
    if not matches:
        return [text]
    spans, start = [], 0
    outside = {position for position, _ in top_tokens(text)}
    for match in matches:
        if match.start() in outside and not _is_item(text, match):
            spans.append(text[start : match.start()])
            start = match.end()
    return [*spans, text[start:]]


def _is_item(text: str, match: re.Match[str]) -> bool:
    """Returns True if ``and`` or ``or`` is itself a word of a list: ``may, or, free``."""
    before, after = text[: match.start()].rstrip(), text[match.end() :].lstrip()
    return before[-1:] in ("", ",") and after[:1] in ("", ",") and bool(before or after)


def _read_list(text: str, is_gold: bool, depth: int) -> Shape | None:
    groups = split_top(text, ";")
    if len(groups) == 1:
        parts = [piece for part in _split_connectives(text) for piece in split_top(part, ",")]
        parts = [part for part in parts if part.strip()]
        if len(parts) < 2 or _is_prose(text):
            return None
        if len(parts) > MAX_ITEMS:
            return Text(text=text)  # compared in order, at a cost linear in its length
        return Compound(kind="list", items=_parse_all(parts, is_gold, depth))
    if len(groups) > MAX_ITEMS:
        return Text(text=text)
    rows: list[Shape] = []
    for group in groups:
        if not group:
            continue
        items = _parse_all(split_top(group, ","), is_gold, depth)
        rows.append(items[0] if len(items) == 1 else Compound(kind="tuple", items=items))
    return rows[0] if len(rows) == 1 else Compound(kind="list", items=tuple(rows))


def _is_prose(text: str) -> bool:
    words = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}(?![a-zA-Z])")
    if len(words.findall(text)) >= 6 and not re.search(r"\d", text):
        return True
    return any(len(words.findall(part)) >= 5 for part in text.split(","))


def _read_relation(text: str, is_gold: bool, depth: int) -> Shape | None:
    if "mod" in text and (residue := congruence(text)) is not None:
        return Text(text=residue)
    if not _HAS_SIGN.search(text) or is_promotion(text):
        return None
    sides: list[str] = []
    signs: list[str] = []
    start = 0
    for position, token in top_tokens(text):
        if token in _SIGNS:
            sides.append(strip_outer(text[start:position]))
            signs.append(token)
            start = position + len(token)
    if not signs:
        return None
    sides.append(strip_outer(text[start:]))
    if sides[0] == "" and signs[0] in ("=", r"\approx"):
        sides, signs = sides[1:], signs[1:]
    if not all(sides):
        raise UnreadableError("A side of a relation is empty.")
    if not signs:
        return _parse(sides[0], is_gold=is_gold, depth=depth)
    is_named = signs[0] in ("=", r"\in", r"\approx") and _NAME.fullmatch(sides[0])
    if is_named and not occurs(sides[0], sides[1:]):
        rest: Shape
        if len(signs) == 1:
            rest = _parse(sides[1], is_gold=is_gold, depth=depth)
            if isinstance(rest, Text) and re.fullmatch(r"[\d.]*\s*[a-z]{1,4}", rest.text):
                rest = Expression(text=rest.text)  # ``z = xy`` shows that its letters are variables
        else:
            rest = Relation(sides=tuple(sides[1:]), signs=tuple(signs[1:]))
        name = re.sub(r"[\s{}]", "", sides[0])
        return Named(name=name, value=rest, text=text)
    if signs == ["="] and re.fullmatch("[a-zA-Z]", sides[1]) and not occurs(sides[1], sides[:1]):
        value = _parse(sides[0], is_gold=is_gold, depth=depth)  # ``3 = x``
        return Named(name=sides[1], value=value, text=f"{sides[1]} = {sides[0]}")
    return Relation(sides=tuple(sides), signs=tuple(signs))


def _read_union(text: str, is_gold: bool, depth: int) -> Shape | None:
    without = split_top(with_setminus(text), {r"\setminus", r"\backslash"})
    if len(without) == 2:
        left, right = (_parse(strip_outer(part), is_gold=is_gold, depth=depth) for part in without)
        return punctured_line(right) if left == REAL_LINE else None
    parts = split_top(text, {r"\cup"})
    if len(parts) < 2:
        return None
    if not all(parts):
        raise UnreadableError("A part of a union is empty.")
    return Compound(kind="union", items=_parse_all(parts, is_gold, depth))


def _outer_pair(text: str) -> tuple[str, str, str] | None:
    """Returns opening bracket, content and closing bracket if one pair encloses the whole text."""
    match = re.match(r"\\\{|\\langle|[(\[{]", text)
    if match is None:
        return None
    closing = re.search(r"(\\\}|\\rangle|[)\]}])$", text)
    if closing is None:
        return None
    inside = text[match.end() : closing.start()]
    depth = 0
    for token in re.findall(r"\\[a-zA-Z]+|\\.|.", inside, re.S):
        depth += token in ("(", "[", "{", r"\{", r"\langle")
        depth -= token in (")", "]", "}", r"\}", r"\rangle")
        if depth < 0:
            return None
    return (match.group(), inside.strip(), closing.group()) if depth == 0 else None


def _read_brackets(text: str, is_gold: bool, depth: int) -> Shape | None:
    pair = _outer_pair(text)
    if pair is None:
        return None
    opening, inside, closing = pair
    if opening in (r"\{", "{") and closing in (r"\}", "}"):
        if "|" in inside or r"\mid" in inside or ":" in inside:
            condition = condition_of(inside)
            return None if condition is None else _read_relation(strip_outer(condition), is_gold, depth)
        return Compound(kind="set", items=_parse_all(_items(inside), is_gold, depth))
    if opening == "(" and "," not in inside and is_cycles(text):
        return Text(text=text)
    if "(" not in opening and "[" not in opening and "langle" not in opening:
        return None
    if _ENVIRONMENT.fullmatch(inside):
        return _parse(inside, is_gold=is_gold, depth=depth)
    items = _items(inside)
    if len(items) < 2:
        # ``[5]`` is a value in brackets; ``(x+1]`` has no meaning.
        matched = opening + closing in ("[]", "()")
        return _parse(strip_outer(inside), is_gold=is_gold, depth=depth) if matched else None
    shapes = _parse_all(items, is_gold, depth)
    if len(shapes) > 2 and opening + closing in ("[)", "(]"):
        raise UnreadableError("Its brackets do not match.")
    if len(shapes) == 2 and "langle" not in opening and opening + closing != "()":
        return Interval(
            low=shapes[0],
            high=shapes[1],
            low_closed=opening == "[",
            high_closed=closing == "]",
        )
    return Compound(kind="tuple", items=shapes)


def _items(inside: str) -> list[str]:
    if len(groups := split_top(inside, ";")) > 1:
        return groups
    return [item for part in _split_connectives(inside) for item in split_top(part, ",")]


def _read_matrix(text: str, is_gold: bool, depth: int) -> Shape | None:
    match = _ENVIRONMENT.fullmatch(text)
    if match is None or match[1].startswith(("v", "V")) or r"\begin" in match[2]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr\b", match[2]) if row.strip(" \\")]
    if match[1] in ("cases", "aligned"):
        joined = [row.replace("&", " ").strip(" ,") for row in rows]
        return Compound(kind="set", items=_parse_all(joined, is_gold, depth))
    if sum(row.count("&") + 1 for row in rows) > MAX_ITEMS:
        raise UnreadableError(f"It is a matrix of more than {MAX_ITEMS} entries.")
    cells = [
        tuple(
            _parse(strip_outer(cell), is_gold=is_gold, depth=depth)
            for cell in row.replace(r"\hline", " ").split("&")
        )
        for row in rows
    ]
    return Matrix(rows=tuple(cells))


def _read_plus_minus(text: str, is_gold: bool, depth: int) -> Shape | None:
    if r"\pm" not in text and r"\mp" not in text:
        return None
    both = []
    for upper, lower in (("+", "-"), ("-", "+")):
        branch = text.replace(r"\pm", f" {upper} ").replace(r"\mp", f" {lower} ")
        branch = re.sub(r"(^|[({,])\s*\+ ", r"\1", branch)
        both.append(_parse(strip_outer(branch), is_gold=is_gold, depth=depth))
    return Compound(kind="list", items=tuple(both))
