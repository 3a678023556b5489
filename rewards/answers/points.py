"""The fixed points at which two expressions with variables are compared."""

import random
from typing import Any

import sympy

Point = dict[Any, Any]
"""Values of the variables."""
NUM_NEAR = 8
_MAGNITUDES = (4, 8, 15, 40, 150, 600, 2500)
"""Distances from zero of the far points."""
_MAX_EXPONENT = 1_000
"""Absolute value of an exponent beyond which far points would cost too much."""
_PIECEWISE = (sympy.Abs, sympy.floor, sympy.ceiling, sympy.sign)


def points(symbols: set[Any], *expressions: sympy.Expr) -> list[Point]:
    """Returns fixed rational points: ``NUM_NEAR`` within 3 of zero, and far ones where they are needed.

    ``|x-5|`` is ``5-x`` wherever x is near zero, and ``\\lfloor x/8 \\rfloor`` is 0.
    """
    found = near_points(symbols, NUM_NEAR)
    needs_far = any(_is_piecewise(expression) for expression in expressions)
    return found + far_points(symbols) if needs_far and all(map(_is_cheap, expressions)) else found


def near_points(symbols: set[Any], count: int) -> list[Point]:
    """Returns points of which the first half is positive, and the second half has mixed signs."""
    generator = random.Random(20)
    found = []
    for index in range(count):
        point = {}
        for name in sorted(symbols, key=str):
            value = sympy.Rational(generator.randint(400, 2600), 997)
            point[name] = -value if index >= count // 2 and generator.random() < 0.6 else value
        found.append(point)
    return found


def far_points(symbols: set[Any]) -> list[Point]:
    """Returns points with every magnitude and sign for each variable, in an order of its own."""
    generator = random.Random(21)
    columns = []
    for _ in symbols:
        signed = [sign * magnitude for magnitude in _MAGNITUDES for sign in (1, -1)]
        generator.shuffle(signed)
        columns.append([sympy.Rational(value * generator.randint(800, 1200), 997) for value in signed])
    names = sorted(symbols, key=str)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_piecewise(expression: sympy.Expr) -> bool:
    """Returns True if it has other formulas in other places: absolute values, roundings, roots."""
    return expression.has(*_PIECEWISE) or any(
        isinstance(power.exp, sympy.Rational) and not power.exp.is_integer and power.base.free_symbols
        for power in expression.atoms(sympy.Pow)
    )


def _is_cheap(expression: sympy.Expr) -> bool:
    """Returns True if no part grows faster than powers: ``\\sin(e^{e^{x}})`` far out would never end."""
    if expression.has(sympy.exp, sympy.factorial, sympy.gamma, sympy.sinh, sympy.cosh):
        return False
    return all(
        isinstance(power.exp, sympy.Rational) and abs(power.exp) <= _MAX_EXPONENT
        for power in expression.atoms(sympy.Pow)
        if power.free_symbols
    )
