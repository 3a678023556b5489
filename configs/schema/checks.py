"""Checks of single values; each names the option, the value and what was expected."""

import difflib
from collections.abc import Sequence


def choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option} is '{value}'; choose one of {', '.join(choices)}.")


def choice_or_import(option: str, value: str, choices: Sequence[str], form: str) -> None:
    """``value`` is one of the choices or an import path, written as ``form``: ``package.module:name``."""
    if value in choices or all(value.partition(":")):
        return
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"{option} is '{value}'; choose one of {', '.join(choices)}, or write {form}.{hint}")


def at_least(option: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}.")


def above(option: str, value: float, limit: float) -> None:
    if value <= limit:
        raise ValueError(f"{option} must be above {limit}, got {value}.")


def share(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{option} must lie between 0 and 1, got {value}.")
