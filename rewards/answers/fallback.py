"""Reads what ``rewards.answers.grammar`` does not know, such as products of matrices, with latex2sympy."""

import logging
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

from rewards.answers.shapes import UnreadableError

_CONVERSION = ConversionConfig(lowercase_symbols=False)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

MAX_CHARS = 300
"""Length limit of a text that latex2sympy reads, whose time is exponential in the nesting."""
MAX_DEPTH = 3
_NEEDED = re.compile(r"\\begin|\\frac\s*\{\s*d\s*\}")
# Texts that latex2sympy would evaluate at once, whatever their size.
_LARGE = re.compile(r"!|\\binom|\d{7}|\^[^&\\]*\^|\^\s*\{?\s*\d{3}")


def read_with_latex2sympy(text: str, reason: str) -> Any:
    """Parses a text with latex2sympy.

    Args:
        text: LaTeX as ``latex.normalise`` returns it.
        reason: Why the grammar does not know it.

    Raises:
        UnreadableError: If its cost is not known to be small, or it has no meaning.
    """
    if not _NEEDED.search(text) or "'" in text:
        raise UnreadableError(f"It cannot be read as mathematics: {reason}.")
    if len(text) > MAX_CHARS or _depth(text) > MAX_DEPTH or _LARGE.search(text):
        raise UnreadableError("It cannot be read as mathematics of bounded cost.")
    try:
        result = latex2sympy(text, is_real=None, conversion_config=_CONVERSION)
    # latex2sympy raises bare Exception, and passes on any error of SymPy.
    except Exception as error:
        if isinstance(error, MemoryError | RecursionError):
            raise
        first_line = str(error).split("\n")[0]
        raise UnreadableError(f"It cannot be read as mathematics: {first_line}") from error
    if not isinstance(result, sympy.Basic | sympy.MatrixBase):
        raise UnreadableError("It is not one mathematical object.")
    if result.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.oo):
        raise UnreadableError("It has an operator or an infinity that is not evaluated.")
    derivatives: Any = result.atoms(sympy.Derivative)
    orders = [order for item in derivatives for _, order in item.variable_count]
    if not all(order.is_Integer for order in orders):
        raise UnreadableError("It has a derivative whose order is a variable.")
    # Decimals become exact rationals, and ``i`` the imaginary unit.
    exact: dict[sympy.Basic, sympy.Basic] = {
        number: sympy.Rational(str(number)) for number in result.atoms(sympy.Float)
    }
    exact |= {symbol: sympy.I for symbol in result.free_symbols if str(symbol) == "i"}
    if exact:
        result = result.xreplace(exact)
    return result.doit() if result.has(sympy.Derivative) else result


def _depth(text: str) -> int:
    """Returns how deeply round, square and curly brackets are nested."""
    depth = deepest = 0
    for character in text:
        depth += character in "([{"
        depth -= character in ")]}"
        deepest = max(deepest, depth)
    return deepest
