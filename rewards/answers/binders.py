"""Reads operators that bind a variable: sums, products, integrals, limits.

A bound variable has no value outside its operator, so an operator is either evaluated (a short finite sum or
product) or becomes one symbol, whose name has canonical bound variables: equal operators stay equal.
"""

import sympy

from rewards.answers.guarded import NotInGrammarError
from rewards.answers.reader import Reader
from rewards.answers.shapes import UnreadableError

BINDERS = ("sum", "prod", "int", "lim")
MAX_TERMS = 128
"""Number of terms of a sum or product that is evaluated."""


def read_binder(parser: Reader, name: str) -> sympy.Expr:
    """Reads an operator, whose command has been taken, with its bounds and its body."""
    if name == "lim":
        return _limit(parser)
    return _integral(parser) if name == "int" else _series(parser, name)


def _series(parser: Reader, name: str) -> sympy.Expr:
    variable, lower, upper = "", "", ""
    low: sympy.Expr | None = None
    high: sympy.Expr | None = None
    while parser.token in ("_", "^"):
        if parser.take() == "^":
            start = parser.position
            high = _bound(parser)
            upper = _text(parser, start)
            continue
        start = parser.position
        tokens = parser.tokens[start : start + 3]
        if len(tokens) == 3 and tokens[0] == "{" and tokens[2] == "=":
            parser.position += 3
            variable, low = tokens[1], parser.sum()
            parser.take("}")
        else:
            parser.exponent_text()
        lower = _text(parser, start)
    if isinstance(low, sympy.Integer) and isinstance(high, sympy.Integer) and high - low < MAX_TERMS:
        return _finite(parser, name, variable, range(int(low), int(high) + 1))
    with parser.binding(variable):
        body = parser.term()
    bounds = (lower if low is None else low, upper if high is None else high)
    return _symbol(parser, name, body, *bounds)


def _symbol(parser: Reader, name: str, body: sympy.Expr, *bounds: object) -> sympy.Expr:
    """Returns the symbol of an operator; all but products are linear, so constant factors stay outside."""
    factor, body = (sympy.Integer(1), body) if name == "prod" else body.as_coeff_Mul()
    return factor * parser.guard.opaque(name, *bounds, body)


def _finite(parser: Reader, name: str, variable: str, values: range) -> sympy.Expr:
    start = parser.position
    parts: list[sympy.Expr] = []
    for value in values:
        parser.position = start
        with parser.binding(variable, sympy.Integer(value)):
            parts.append(parser.term())
    if not parts:
        with parser.binding(variable):
            parser.term()  # an empty sum still has a body
    return sympy.Add(*parts) if name == "sum" else sympy.Mul(*parts)


def _limit(parser: Reader) -> sympy.Expr:
    parser.take("_")
    parser.take("{")
    variable = parser.take()
    if parser.take() not in (r"\to", r"\rightarrow", r"\longrightarrow"):
        raise UnreadableError("It has a limit without an arrow.")
    start = parser.position
    while parser.token != "}":
        parser.take()
    target = "".join(parser.tokens[start : parser.position])
    parser.take("}")
    with parser.binding(variable):
        body = parser.term()
    return _symbol(parser, "lim", body, target)


def _integral(parser: Reader) -> sympy.Expr:
    bounds: dict[str, sympy.Expr] = {}
    while parser.token in ("_", "^"):
        sign = parser.take()
        bounds[sign] = _bound(parser)
    end = _differential(parser)
    if end is None:
        raise UnreadableError("It has an integral without the differential of its variable.")
    variable = parser.tokens[end + 1]
    tokens, parser.tokens = parser.tokens, parser.tokens[:end]
    # The variable of an indefinite integral is free.
    with parser.binding(variable if bounds else ""):
        body = parser.sum() if parser.token else sympy.Integer(1)
    if parser.token:
        raise NotInGrammarError(f"unexpected {parser.token}")
    parser.tokens, parser.position = tokens, end + 2
    limits = (bounds.get(sign, "") for sign in "_^")
    return _symbol(parser, "int", body, *limits, "" if bounds else variable)


def _differential(parser: Reader) -> int | None:
    """Returns the position of the ``d`` of ``dx`` outside brackets and inner integrals."""
    depth = inner = 0
    for position in range(parser.position, len(parser.tokens) - 1):
        token, following = parser.tokens[position : position + 2]
        depth += token in ("(", "[", "{")
        depth -= token in (")", "]", "}")
        inner += depth == 0 and token == r"\int"
        if depth == 0 and token == "d" and following.lstrip("\\").isalpha():
            if not inner:
                return position
            inner -= 1
    return None


def _bound(parser: Reader) -> sympy.Expr:
    had_infinity, parser.has_infinity = parser.has_infinity, False
    value = parser.script()
    parser.has_infinity = had_infinity
    return value


def _text(parser: Reader, start: int) -> str:
    return "".join(parser.tokens[start : parser.position])
