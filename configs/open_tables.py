"""Options that are tables with keys of the user's choice, such as ``data.task_options``.

Hydra takes a new key of such a table only with a ``+`` in front. Which tables are open is known here, so
users need not write it.
"""

import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

_NEW_KEY = re.compile(r"([\w.]+)=")
"""An assignment without ``+`` or ``~``."""


def with_new_keys(overrides: list[str], schema: type) -> list[str]:
    """Returns the overrides with ``++`` before those that set an open table or a key of one.

    Args:
        overrides: Overrides of a command line.
        schema: The dataclass of the command's config.
    """
    tables = tuple(open_tables(schema))
    return [f"++{each}" if _sets(each, tables) else each for each in overrides]


def _sets(override: str, tables: tuple[str, ...]) -> bool:
    found = _NEW_KEY.match(override)
    return found is not None and f"{found.group(1)}.".startswith(tuple(f"{table}." for table in tables))


def open_tables(schema: type, prefix: str = "") -> Iterator[str]:
    """Yields the full names of the options that are tables without a schema."""
    kinds = typing.get_type_hints(schema)
    for item in fields(schema):
        kind = kinds[item.name]
        if typing.get_origin(kind) is dict:
            yield f"{prefix}{item.name}"
        elif is_dataclass(kind) and isinstance(kind, type):
            yield from open_tables(kind, f"{prefix}{item.name}.")
