"""Reads names in expressions: variables with index and primes, constants, functions and their arguments."""

import contextlib
import re

import sympy

from rewards.answers.guarded import NotInGrammarError
from rewards.answers.reader import Reader, is_numeral
from rewards.answers.shapes import UnreadableError

_NAMED_FUNCTIONS = frozenset("fgFGP")
"""Letters that denote a function before a bracket; any other letter is multiplied with it."""


def read_name(parser: Reader, *, is_exponent: bool) -> sympy.Expr:
    """Reads a variable, a constant or the application of a function.

    Raises:
        UnreadableError: If a digit follows directly: ``x2`` is no product.
    """
    name = parser.take()
    if is_numeral(parser.token) and not is_exponent:
        raise UnreadableError("It has a digit directly after a letter.")
    name = decorated(parser, name)
    if name in parser.env:
        return parser.env[name]
    if name in ("e", "i", "I"):
        return sympy.E if name == "e" else sympy.I
    return _maybe_applied(parser, name) if not is_exponent else sympy.Symbol(name)


def decorated(parser: Reader, name: str) -> str:
    """Returns a name with the index and primes that follow it."""
    while True:
        following = parser.tokens[parser.position : parser.position + 2]
        if following[:1] == ["_"]:
            parser.take()
            name += f"_{_index(parser)}"
        elif following[:1] == ["'"] or following == ["^", r"\prime"]:
            parser.position += 1 if following[0] == "'" else 2
            name += "'"
        else:
            return name


def _index(parser: Reader) -> str:
    if parser.token == "{":
        start = parser.position
        raw = parser.raw_group()
        if 1 < len(raw) <= 3 and any(letter in parser.env for letter in raw):  # ``a_{ij}`` under a sum
            parts = [sympy.sstr(parser.env.get(letter, letter)) for letter in raw]
            return ("" if max(map(len, parts)) == 1 else ",").join(parts)
        if re.fullmatch("1[a-zA-Z]", raw):  # a row and a column, as no one writes 1 times k
            return raw
        if len(raw) == 1 or not raw.isalpha():  # ``x_{max}`` is no product
            parser.position = start
            with contextlib.suppress(NotInGrammarError, UnreadableError):
                return sympy.sstr(parser.group(), order="lex")
            parser.position = start
            parser.raw_group()
        return raw
    token = parser.take()
    return sympy.sstr(parser.env[token]) if token in parser.env else token


def _maybe_applied(parser: Reader, name: str) -> sympy.Expr:
    if parser.token != "(" or not (name[0] in _NAMED_FUNCTIONS or _has_comma(parser)):
        return sympy.Symbol(name)
    arguments = parser.arguments()
    if name == "C" and len(arguments) == 2:
        return parser.guard.binomial(*arguments)
    return parser.guard.apply(name, arguments)


def _has_comma(parser: Reader) -> bool:
    depth = 0
    for token in parser.tokens[parser.position :]:
        depth += token in "([{"
        depth -= token in ")]}"
        if depth == 0:
            return False
        if token == "," and depth == 1:
            return True
    return False
