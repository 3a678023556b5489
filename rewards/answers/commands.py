"""Reads LaTeX commands for ``rewards.answers.grammar``: fractions, roots, functions, accents."""

from typing import Any

import sympy

from rewards.answers.binders import BINDERS, read_binder
from rewards.answers.guarded import NotInGrammarError
from rewards.answers.names import decorated
from rewards.answers.reader import Reader

_GREEK_TEXT = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma
tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar
triangle angle star square diamond heartsuit clubsuit spadesuit
"""
_GREEK = frozenset(_GREEK_TEXT.split())
_ACCENTS = frozenset(("vec", "overline", "bar", "hat", "tilde", "overrightarrow", "dot"))
_FUNCTIONS: dict[str, Any] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec,
    "csc": sympy.csc, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
    "arccot": sympy.acot, "arcsec": sympy.asec, "arccsc": sympy.acsc, "sinh": sympy.sinh,
    "cosh": sympy.cosh, "tanh": sympy.tanh, "coth": sympy.coth, "ln": sympy.log, "log": sympy.log,
    "lg": sympy.log, "exp": sympy.exp,
}  # fmt: skip
_INVERSES = {
    sympy.sin: sympy.asin, sympy.cos: sympy.acos, sympy.tan: sympy.atan, sympy.cot: sympy.acot,
    sympy.sec: sympy.asec, sympy.csc: sympy.acsc, sympy.sinh: sympy.asinh, sympy.cosh: sympy.acosh,
    sympy.tanh: sympy.atanh,
}  # fmt: skip
_OF_LISTS: dict[str, Any] = {"max": sympy.Max, "min": sympy.Min, "gcd": sympy.gcd, "lcm": sympy.lcm}
_KNOWN = frozenset(
    {*_GREEK, *_ACCENTS, *_FUNCTIONS, *_OF_LISTS, *BINDERS, "frac", "sqrt", "binom", "pi", "infty"}
)


def is_command(token: str) -> bool:
    """Returns True for a command that begins a factor."""
    return token.startswith("\\") and token[1:] in _KNOWN


def read_command(parser: Reader) -> sympy.Expr:
    """Reads one factor that begins with a command.

    Raises:
        NotInGrammarError: If the command is unknown.
    """
    token = parser.take()
    match token[1:]:
        case "frac":
            return _fraction(parser)
        case "sqrt":
            degree = parser.group("[") if parser.token == "[" else sympy.Integer(2)
            return parser.guard.power(parser.group(), parser.guard.divide(sympy.Integer(1), degree))
        case "binom":
            return parser.guard.binomial(parser.group(), parser.group())
        case "pi":
            return sympy.pi
        case "infty":
            parser.has_infinity = True
            return sympy.oo
        case name if name in _GREEK:
            name = decorated(parser, name)
            return parser.env.get(name, sympy.Symbol(name))
        case name if name in _FUNCTIONS:
            return _function(parser, name)
        case name if name in _OF_LISTS:
            arguments = parser.arguments()
            # Of polynomials it would expand powers of any size.
            if not all(isinstance(argument, sympy.Rational) for argument in arguments):
                return parser.guard.opaque(name, *sorted(arguments, key=str))
            return _OF_LISTS[name](*arguments)
        case name if name in _ACCENTS:
            inner = parser.raw_group() if parser.token == "{" else parser.take()
            name = "bar" if name == "overline" else name
            return sympy.Symbol(decorated(parser, f"{name}{{{inner}}}"))
        case name if name in BINDERS:
            return read_binder(parser, name)
    raise NotInGrammarError(f"unknown command {token}")


def _fraction(parser: Reader) -> sympy.Expr:
    tokens = parser.tokens[parser.position : parser.position + 8]
    if tokens[:2] == ["{", "d"] and "d" in tokens[3:6]:
        if len(tokens) == 8 and tokens[3:6] == ["}", "{", "d"] and tokens[7] == "}":
            parser.position += 8
            return parser.guard.opaque("derivative", tokens[2], tokens[6])
        raise NotInGrammarError("a derivative")
    return parser.guard.divide(parser.group(), parser.group())


def _function(parser: Reader, name: str) -> sympy.Expr:
    """Reads a function with its index, its power and its argument: ``\\log_2 8``, ``\\sin^2 x``."""
    function = _FUNCTIONS[name]
    base: sympy.Expr | None = sympy.Integer(10) if name in ("log", "lg") else None
    power: sympy.Expr | None = None
    while parser.token in ("_", "^"):
        if parser.take() == "_":
            if name != "log":
                raise NotInGrammarError(f"an index of {name}")
            base = parser.script()
        else:
            power = parser.script()
    if power == -1 and function in _INVERSES:
        function, power = _INVERSES[function], None
    argument = _argument(parser)
    if base is not None:
        value = parser.guard.divide(parser.guard.function(sympy.log, argument), sympy.log(base))
    elif name == "exp":
        value = parser.guard.power(sympy.E, argument)
    else:
        value = parser.guard.function(function, argument)
    return value if power is None else parser.guard.power(value, power)


def _argument(parser: Reader) -> sympy.Expr:
    """Reads a group, or the factors up to a sign or another function."""
    if parser.token in ("(", "[", "{"):
        return parser.group(parser.token)
    sign = -1 if parser.token == "-" and parser.take() else 1
    factors = [parser.factor()]
    while parser.starts_factor() and parser.token[1:] not in _FUNCTIONS:
        factors.append(parser.factor())
    return sympy.Mul(sign, *factors)
