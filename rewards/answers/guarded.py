"""Constructs SymPy expressions of bounded cost.

SymPy evaluates numbers when it builds an expression, so ``9^{9^{9}}`` never returns. A part that is too large
to evaluate becomes a symbol named after its canonical spelling: equal parts stay equal, and such an answer
never equals a number.
"""

from typing import Any

import sympy

from rewards.answers.shapes import UnreadableError

MAX_BITS = 14_000
"""Size of all evaluated powers, factorials and binomials of one expression together, in bits."""
MAX_EXPONENT = 100_000
"""Absolute value of an exponent that is evaluated."""
MAX_TOWER = 2
"""Number of exponents with variables that may be stacked on each other."""
MAX_SIMPLIFIED = 12
"""Number of functions of one expression that SymPy may simplify, at up to half a millisecond each."""
MAX_ROUNDED = 10**100
"""Absolute value of an irrational number whose floor or ceiling is computed, to as many digits as it has."""


class NotInGrammarError(Exception):
    """The text has a construct that ``rewards.answers.grammar`` does not know."""


class Guard:
    """Counts the cost of one expression while it is built."""

    def __init__(self) -> None:
        self._bits = 0
        self._num_functions = 0
        self.num_opaque = 0
        """Number of symbols made for parts that are not evaluated."""

    def opaque(self, kind: str, *parts: Any) -> sympy.Symbol:
        """Returns a symbol for a part that is not evaluated; its name contains all that distinguishes it.

        Raises:
            UnreadableError: If it contains a number of more than 4,300 digits.
        """
        self.num_opaque += 1
        try:
            return sympy.Symbol(f"{kind}[{'|'.join(sympy.sstr(part, order='lex') for part in parts)}]")
        except ValueError as error:  # Python's limit for the digits of an integer
            raise UnreadableError("It has a number of more than 4300 digits.") from error

    def divide(self, top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
        """Returns the quotient.

        Raises:
            UnreadableError: If the denominator is zero.
        """
        # Not ``is_zero``: SymPy's deductions take longer than all else.
        if bottom == 0:
            raise UnreadableError("It divides by zero.")
        return top / bottom

    def power(self, base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
        """Returns the power; roots of odd degree of negative numbers are real.

        Raises:
            UnreadableError: If it divides by zero.
        """
        if base == 0 and isinstance(exponent, sympy.Rational) and exponent < 0:
            raise UnreadableError("It divides by zero.")
        if exponent.is_number and not isinstance(exponent, sympy.Rational):
            size = exponent.evalf(15)
            if not size.is_number or abs(size) > MAX_EXPONENT:
                return self.opaque("power", base, exponent)
        if isinstance(exponent, sympy.Rational):
            is_large = isinstance(base, sympy.Rational) and not self._affords(_bits_of_power(base, exponent))
            if abs(exponent) > MAX_EXPONENT or is_large:
                return self._large_power(base, exponent)
            if exponent.q > 1 and exponent.q % 2 and base.is_number and base.is_negative:
                return (-1) ** (exponent.p % 2) * sympy.Pow(-base, exponent)
        if exponent.free_symbols and _tower_height(exponent) >= MAX_TOWER:
            return self.opaque("power", base, exponent)
        return sympy.Pow(base, exponent)

    def _affords(self, bits: int) -> bool:
        """Counts the size of a number, and returns False if it is beyond the limit."""
        self._bits += bits
        return self._bits <= MAX_BITS

    def _large_power(self, base: sympy.Expr, exponent: sympy.Rational) -> sympy.Expr:
        # ``4^{500000}`` and ``2^{1000000}`` need the same name.
        if isinstance(base, sympy.Integer) and 1 < base < MAX_EXPONENT:
            root = sympy.perfect_power(base)
            if root:
                return self.opaque("power", sympy.Integer(root[0]), exponent * root[1])
        return self.opaque("power", base, exponent)

    def factorial(self, value: sympy.Expr) -> sympy.Expr:
        """Returns the factorial.

        Raises:
            UnreadableError: If the value is a negative number or not an integer, or has a variable and the
                expression many functions.
        """
        if not value.is_number:
            self._num_functions += 1
            if self._num_functions > MAX_SIMPLIFIED:  # each takes a millisecond at each point
                raise UnreadableError(f"It has a factorial of a variable after {MAX_SIMPLIFIED} functions.")
            return sympy.factorial(value)
        if not isinstance(value, sympy.Integer) or value < 0:
            raise UnreadableError("It is the factorial of a number that is not a natural number.")
        is_small = self._affords(int(value) * int(value).bit_length())
        return sympy.factorial(value) if is_small else self.opaque("factorial", value)

    def binomial(self, top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
        """Returns the binomial coefficient."""
        if any(part.is_number and not isinstance(part, sympy.Integer) for part in (top, bottom)):
            raise UnreadableError("It is a binomial coefficient of a number that is not an integer.")
        numbers = [abs(int(part)) for part in (top, bottom) if isinstance(part, sympy.Integer)]
        # With a variable above, SymPy expands it to a polynomial of that degree.
        if not self._affords(sum(numbers) if len(numbers) == 2 else 1000 * sum(numbers)):
            return self.opaque("binomial", top, bottom)
        return sympy.binomial(top, bottom)

    def remainder(self, value: sympy.Expr, modulus: sympy.Expr) -> sympy.Expr:
        """Returns the remainder of a division of integers.

        Raises:
            UnreadableError: If the modulus is zero.
        """
        if modulus == 0:
            raise UnreadableError("It divides by zero.")
        are_integers = isinstance(value, sympy.Integer) and isinstance(modulus, sympy.Integer)
        return value % modulus if are_integers else self.opaque("mod", value, modulus)

    def function(self, function: Any, argument: sympy.Expr) -> sympy.Expr:
        """Returns a function of an argument, simplified unless the expression has had many."""
        self._num_functions += 1
        return function(argument, evaluate=self._num_functions <= MAX_SIMPLIFIED)

    def rounding(self, function: Any, value: sympy.Expr) -> sympy.Expr:
        """Returns the floor or ceiling of a value."""
        if value.is_number and not isinstance(value, sympy.Rational):
            size = value.evalf(15)
            if not size.is_real or abs(size) > MAX_ROUNDED:
                return self.opaque(str(function), value)
        return function(value)

    def apply(self, name: str, arguments: list[sympy.Expr]) -> sympy.Expr:
        """Returns an unknown function of its arguments."""
        return self.opaque("apply", sympy.Symbol(name), *arguments)


def _bits_of_power(base: sympy.Rational, exponent: sympy.Rational) -> int:
    size = max(abs(base.p).bit_length(), base.q.bit_length())
    return int(size * abs(exponent)) if abs(base) != 1 else 1


def _tower_height(exponent: sympy.Basic) -> int:
    """Returns the number of exponents with variables that are stacked in an exponent, itself included."""
    inner = [
        _tower_height(power.exp) for power in exponent.atoms(sympy.Pow, sympy.exp) if power.exp.free_symbols
    ]
    return 1 + max(inner, default=0)
