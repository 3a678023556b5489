"""What a user's option names by its import path: an operator or a distiller of one's own."""

import importlib


def imported(option: str, path: str, form: str) -> object:
    """The object that ``path``, written as ``package.module:name``, names.

    Args:
        option: Set to ``path``, for the message.
        path: What to import.
        form: How to write it, for the message.

    Raises:
        ValueError: If it does not import.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{option} is {path!r}, which does not import: {error}. Write it as {form}; "
            "the module must be importable from the folder you start in."
        ) from error
