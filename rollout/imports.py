"""Imports what an option names by its path: a custom operator or distiller."""

import importlib


def imported(option: str, path: str, form: str) -> object:
    """Returns the object that ``path``, written as ``package.module:name``, names.

    Args:
        option: Name of the option that holds ``path``, for the message.
        path: Import path of the object.
        form: The expected form of ``path``, for the message.

    Raises:
        ValueError: If the path does not import.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{option} is {path!r}, which does not import: {error}. Write it as {form}; "
            "the module must be importable from the folder you start in."
        ) from error
