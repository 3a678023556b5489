"""Explains overrides that Hydra's grammar cannot read, such as a path with ``=`` or brackets."""

import re
import shlex

_KEY = re.compile(r"[+~]{0,2}[\w./@-]+")


def unreadable(override: str) -> str:
    """Returns why an override ``key=value`` cannot be read, and how to write it.

    A value with signs of the grammar needs quotes for Hydra, and the whole override others for the shell.
    """
    key, separator, value = override.partition("=")
    if not separator or not _KEY.fullmatch(key):
        return f"The override {override!r} cannot be read; write it as key=value."
    plain = value.strip("'\"")
    quoted = '"' + plain.replace('"', r"\"") + '"'
    text = (
        f"The value of the override {override} cannot be read: a value with one of = [ ] {{ }} ( ) , # ~ & ; "
        "! or with other letters than English ones must stand in quotes, which the shell must not take away: "
        f"{shlex.quote(f'{key}={quoted}')}"
    )
    return f"{text} (with ~ written out, as it is not expanded)" if plain.startswith("~") else text
