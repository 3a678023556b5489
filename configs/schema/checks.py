"""Checks of single values. Each raises ValueError with the option, its value and the expected values."""

import difflib
import re
from collections.abc import Sequence


def choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Checks that ``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is '{value}'; choose one of {', '.join(choices)}.")


def choice_or_import(option: str, value: str, choices: Sequence[str], form: str) -> None:
    """Checks that ``value`` is one of the choices, or an import path of the form ``package.module:name``."""
    if value in choices or all(value.partition(":")):
        return
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"{option} is '{value}'; choose one of {', '.join(choices)}, or write {form}.{hint}")


def at_least(option: str, value: float, least: float) -> None:
    """Checks that ``value >= least``."""
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}.")


def above(option: str, value: float, limit: float) -> None:
    """Checks that ``value > limit``."""
    if value <= limit:
        raise ValueError(f"{option} must be above {limit}, got {value}.")


def share(option: str, value: float) -> None:
    """Checks that ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{option} must lie between 0 and 1, got {value}.")


def has_user(url: str) -> bool:
    """Returns True if a URL holds a user name or a password: ``http://user:password@host``."""
    rest = url.partition("://")[2] or url
    return "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]
