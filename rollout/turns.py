"""The turns of a prompt, and how they become one text: by a chat template, or as paragraphs without one."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:  # plans import operators without loading torch
    from transformers import PreTrainedTokenizerBase

_GENERATION_TAG = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")
"""A tag of transformers, which Jinja itself does not know."""


class Turn(NamedTuple):
    """One turn of a prompt."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    text: str


def rendered(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Turn],
    arguments: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """Returns the turns in the tokenizer's chat template; their texts as paragraphs if there is none.

    Args:
        tokenizer: Holds the chat template.
        turns: The turns of the prompt, the first one first.
        arguments: Further arguments of the template; unused without one.
        add_generation_prompt: True lets the template open the turn of the assistant.
    """
    if tokenizer.chat_template is None:
        return "\n\n".join(turn.text for turn in turns)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=False, **arguments
    )
    return cast("str", text)


def unread(tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any]) -> list[str]:
    """Returns the names among ``arguments`` that the chat template does not read, sorted."""
    if not arguments or tokenizer.chat_template is None:
        return sorted(arguments)
    from jinja2 import Environment, meta  # here, since only a run with arguments needs it

    source = _GENERATION_TAG.sub("", tokenizer.get_chat_template())
    parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    return sorted(arguments.keys() - meta.find_undeclared_variables(parsed))
