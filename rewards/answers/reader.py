"""Tokens of an expression and the interface of the grammar's parts."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

import sympy

from rewards.answers.guarded import Guard, NotInGrammarError
from rewards.answers.shapes import UnreadableError

MAX_TOKENS = 600
MAX_DEPTH = 10
MAX_WORK = 1_000
"""Number of tokens read in all; the body of a sum is read once for each of its terms."""

Env = dict[str, sympy.Expr]
"""Values of the bound variables."""

_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+|\\[a-zA-Z]+|\\.|\S)")


def is_numeral(token: str) -> bool:
    """Returns True for a token that is an unsigned number."""
    return bool(re.match(r"\.?[0-9]", token))


class Reader(ABC):
    """The state of one reading and its steps on tokens; ``grammar.Parser`` adds the grammar."""

    def __init__(self, text: str, *, crosses: bool = False) -> None:
        """Args: crosses: True if ``a \\times b`` is a cross product, which does not commute."""
        self.tokens = _TOKEN.findall(text)
        if len(self.tokens) > MAX_TOKENS:
            raise UnreadableError(f"It has more than {MAX_TOKENS} signs.")
        self.position = 0
        self.guard = Guard()
        self.env: Env = {}
        self.crosses = crosses
        self.has_infinity = False
        """True once an infinity was read outside the bounds of an operator."""
        self._work = 0

    @property
    def token(self) -> str:
        """The next token; empty at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        """Returns the next token and moves behind it."""
        token = self.token
        if not token or (expected and token != expected):
            raise NotInGrammarError(f"expected {expected or 'more'}, found {token or 'the end'}")
        self.position += 1
        self._work += 1
        if self._work > MAX_WORK:
            raise UnreadableError("It takes too many steps to evaluate.")
        return token

    def exponent_text(self) -> None:
        """Skips an index or exponent without reading it."""
        if self.token == "{":
            self.raw_group()
        else:
            self.take()

    @contextlib.contextmanager
    def binding(self, name: str, value: sympy.Expr | None = None) -> Iterator[None]:
        """Binds a variable within the block: to a value, or to a symbol that depends on the nesting only."""
        outer = dict(self.env)
        if name:
            self.env[name] = sympy.Symbol(f"bound{len(outer)}") if value is None else value
        try:
            yield
        finally:
            self.env = outer

    def raw_group(self) -> str:
        """Returns the text of a group in braces that has no group in it."""
        self.take("{")
        start = self.position
        while self.token != "}":
            self.take()
        self.take("}")
        return "".join(self.tokens[start : self.position - 1])

    # --- the grammar -------------------------------------------------------------------------

    @abstractmethod
    def sum(self) -> sympy.Expr:
        """Reads terms joined by plus and minus."""

    @abstractmethod
    def term(self) -> sympy.Expr:
        """Reads factors joined by product signs, slashes or nothing."""

    @abstractmethod
    def factor(self) -> sympy.Expr:
        """Reads one factor with its exponents and factorials."""

    @abstractmethod
    def exponent(self) -> sympy.Expr:
        """Reads what follows the ``^`` of a power, and the powers of that."""

    @abstractmethod
    def script(self) -> sympy.Expr:
        """Reads what follows ``_`` or ``^`` at an operator: a group, or a single sign, digit or command."""

    @abstractmethod
    def group(self, opening: str = "{") -> sympy.Expr:
        """Reads an expression between brackets."""

    @abstractmethod
    def arguments(self) -> list[sympy.Expr]:
        """Reads ``(a, b, ...)``."""

    @abstractmethod
    def starts_factor(self) -> bool:
        """Returns True if the next token begins a factor of a product without sign.

        Raises:
            UnreadableError: If it is a number: ``x2`` is no product.
        """
