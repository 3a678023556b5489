"""The placeholders of the prompt texts, which are ``str.format`` templates."""

import re
import string

PLACEHOLDERS = {
    "solve": {"question"},
    "draft": {"number", "solution"},
    "refine": {"question", "workspace"},
    "distil": {"question", "drafts", "kappa"},
    "verify": {"question", "solution"},
    "analyse": {"question", "solution"},
    "analysis": {"draft", "analysis"},
    "update": {"question", "workspace", "drafts", "kappa"},
    "select": {"question", "drafts"},
}
"""Placeholders of each text, by its name in ``operator.prompts``."""


def check_placeholders(name: str, text: str) -> None:
    """Checks that a text holds exactly its placeholders.

    Raises:
        ValueError: If it is no template, or lacks a placeholder or holds an unknown one.
    """
    wanted = PLACEHOLDERS[name]
    try:
        found = {held for _, held, _, _ in string.Formatter().parse(text) if held is not None}
    except ValueError as error:
        raise ValueError(
            f"operator.prompts.{name} is not a template: {error}; write {{{{}}}} for braces."
        ) from error
    if found != wanted:
        raise ValueError(
            f"operator.prompts.{name} must hold exactly the placeholders {sorted(wanted)}, got "
            f"{sorted(found)}; write {{{{}}}} for braces."
        )


def before_number(draft: str) -> str:
    """Returns the word before a draft's number, casefolded; its signs if it has no word; else nothing."""
    before = ""
    for literal, name, _, _ in string.Formatter().parse(draft):
        before = literal.casefold()
        if name == "number":
            break
    words = re.findall(r"[^\W\d_]+", before)
    return words[-1] if words else before.strip()
