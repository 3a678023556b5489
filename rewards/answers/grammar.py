"""Reads one LaTeX expression to SymPy by recursive descent: linear in its length, and of bounded cost.

Unlike latex2sympy it multiplies ``3(4)``, distinguishes ``f'`` from ``f``, and builds nothing large
(``rewards.answers.guarded``). Constructs outside the grammar, such as matrices, are left to latex2sympy.
"""

import sympy
from sympy.core.evalf import PrecisionExhausted

from rewards.answers.commands import is_command, read_command
from rewards.answers.guarded import NotInGrammarError
from rewards.answers.names import read_name
from rewards.answers.reader import MAX_DEPTH, Reader, is_numeral
from rewards.answers.shapes import UnreadableError

_PAIRS = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ROUNDINGS = {r"\lfloor": sympy.floor, r"\lceil": sympy.ceiling}
_PRODUCT_SIGNS = ("*", r"\cdot", r"\times", r"\ast")


class Parser(Reader):
    """Reads one expression; its commands are read by ``rewards.answers.commands``."""

    def __init__(self, text: str, *, crosses: bool = False) -> None:
        super().__init__(text, crosses=crosses)
        self._depth = 0
        self._bars = 0

    def read(self) -> sympy.Expr:
        """Returns the expression of the whole text."""
        result = self.sum()
        if self.token:
            raise NotInGrammarError(f"unexpected {self.token}")
        if self.has_infinity and [token for token in self.tokens if token not in "+-"] != [r"\infty"]:
            raise UnreadableError("It computes with infinity.")
        if self.guard.num_opaque and not result.free_symbols:
            raise UnreadableError("Its value does not depend on a part that is not evaluated.")  # 1^{9^{9}}
        return result

    def sum(self) -> sympy.Expr:
        """Reads terms joined by plus and minus."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError(f"It is nested more than {MAX_DEPTH} levels deep.")
        terms = [self.term()]
        while self.token in ("+", "-"):
            terms.append(self.term())
        self._depth -= 1
        return sympy.Add(*terms) if len(terms) > 1 else terms[0]

    def _sign(self) -> int:
        sign = 1
        while self.token in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign

    def term(self) -> sympy.Expr:
        """Reads factors joined by product signs, slashes or nothing; a slash divides by what follows it."""
        sign = self._sign()
        factors = [self.factor()]
        while True:
            if self.token in _PRODUCT_SIGNS:
                is_cross = self.take() == r"\times"
                inner = self._sign()
                factor = self.factor()
                if is_cross and self._is_cross(factors[-1], factor):
                    factor = self.guard.opaque("cross", factors.pop(), factor)
                factors.append(inner * factor)
            elif self.token == "/":
                self.take()
                inner = self._sign()
                bottom = sympy.Mul(*self._adjacent())
                factors = [self.guard.divide(sympy.Mul(*factors), inner * bottom)]
            elif self.starts_factor():
                factors.append(self.factor())
            else:
                return sympy.Mul(sign, *factors)

    def _is_cross(self, left: sympy.Expr, right: sympy.Expr) -> bool:
        parts = (left, right)
        if any(isinstance(part, sympy.Symbol) and part.name.startswith(("vec", "cross")) for part in parts):
            return True
        return self.crosses and all(isinstance(part, sympy.Symbol) for part in parts)

    def _adjacent(self) -> list[sympy.Expr]:
        factors = [self.factor()]
        while self.starts_factor():
            factors.append(self.factor())
        return factors

    def starts_factor(self) -> bool:
        """Returns True if the next token begins a factor of a product without sign.

        Raises:
            UnreadableError: If it is a number: ``x2`` is no product.
        """
        token = self.token
        if is_numeral(token):
            if self.tokens[self.position - 1] == ")":
                return True
            raise UnreadableError("It has a number directly after a factor.")
        if token == "|":
            return self._bars == 0
        return bool(token) and (token[0].isalpha() or token in _PAIRS or is_command(token))

    def factor(self) -> sympy.Expr:
        """Reads one factor with its exponents and factorials."""
        value = self._base()
        while self.token in ("^", "!"):
            if self.take() == "!":
                if self.token == "!":
                    raise UnreadableError("It has a double factorial.")
                value = self.guard.factorial(value)
            elif self.token == r"\circ":
                self.take()
                value = value * sympy.pi / 180
            else:
                value = self.guard.power(value, self.exponent())
        return value

    def exponent(self) -> sympy.Expr:
        """Reads what follows the ``^`` of a power, and the powers of that: ``2^2^3``."""
        sign = self._sign()
        value = self._unsigned_script()
        while self.token == "^":
            self.take()
            value = self.guard.power(value, self.exponent())
        return sign * value

    def script(self) -> sympy.Expr:
        """Reads what follows ``_`` or ``^`` at an operator: a group, or a single sign, digit or command."""
        return self._sign() * self._unsigned_script()

    def _unsigned_script(self) -> sympy.Expr:
        if len(self.token) > 1 and self.token.isdigit():
            # ``normalise`` braces whole numbers; only ``x^-12`` and ``\\int_10`` get here.
            return sympy.Integer(self.take())
        return self._base(is_exponent=True)

    def group(self, opening: str = "{") -> sympy.Expr:
        """Reads an expression between brackets."""
        self.take(opening)
        bars, self._bars = self._bars, 0
        value = self.sum()
        self.take(_PAIRS[opening])
        self._bars = bars
        return value

    # --- single factors ----------------------------------------------------------------------

    def _base(self, *, is_exponent: bool = False) -> sympy.Expr:
        token = self.token
        if is_numeral(token):
            return self._number()
        if token in _PAIRS:
            value = self.group(token)
            return self.guard.rounding(_ROUNDINGS[token], value) if token in _ROUNDINGS else value
        if token == "|":
            self.take()
            self._bars += 1
            value = self.sum()
            self.take("|")
            self._bars -= 1
            return sympy.Abs(value)
        if token[:1].isalpha() and token.isascii():
            return read_name(self, is_exponent=is_exponent)
        if token.startswith("\\") and len(token) > 1:
            return read_command(self)
        raise NotInGrammarError(f"unexpected {token or 'end'}")

    def _number(self) -> sympy.Expr:
        text = self.take()
        if len(text) > 1000:
            raise UnreadableError("It has a number of more than 1000 digits.")
        value = sympy.Rational(text)
        following = self.tokens[self.position : self.position + 7]
        if (
            following[:2] == [r"\frac", "{"]
            and following[3:5] == ["}", "{"]
            and following[6:] == ["}"]
            and all(part.isdigit() for part in (text, following[2], following[5]))
        ):
            return value + read_command(self)  # a mixed number: ``2\frac{1}{2}``
        return value

    def arguments(self) -> list[sympy.Expr]:
        """Reads ``(a, b, ...)``."""
        self.take("(")
        found = [self.sum()]
        while self.token == ",":
            self.take()
            found.append(self.sum())
        self.take(")")
        return found


def read_expression(text: str, *, crosses: bool = False) -> sympy.Expr:
    """Returns the expression of a text.

    Args:
        text: LaTeX as ``latex.normalise`` returns it.
        crosses: True if ``a \\times b`` is a cross product, which does not commute.

    Raises:
        UnreadableError: If it has no value or no meaning, or is too long.
        NotInGrammarError: If it has a construct that this grammar does not know.
    """
    try:
        return Parser(text, crosses=crosses).read()
    except UnreadableError:
        raise
    except (ArithmeticError, TypeError, ValueError, NotImplementedError, PrecisionExhausted) as error:
        raise UnreadableError(f"It has no value: {str(error)[:100]}") from error
