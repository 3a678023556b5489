"""``--help`` of a command: its options by group, each with its value and the first sentence on it."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from configs.reference import REQUIRED, Option, as_written, first_sentence, option_groups

WIDTH = 100
"""Columns of the text."""
TEXT_COLUMN = 42
"""Column where the meanings begin."""

USAGE = """\
Usage: {command} [GROUP=NAME ...] [OPTION=VALUE ...]

Each option is shown with its value on this command line{example}.
{required} marks what must be set. --cfg job prints the config as YAML, --multirun runs a sweep,
--config-dir DIR adds config groups of your own, --hydra-help lists every flag."""


def help_text(
    command: str, about: str, config: DictConfig, schema: type, choices: Mapping[str, Sequence[str]]
) -> str:
    """Returns the help of a command, within ``WIDTH`` columns; every option's line begins with its full name.

    Args:
        command: The command, e.g. ``python -m train``.
        about: What it does.
        config: The composed config, which holds the values to show.
        schema: Its dataclass.
        choices: The names to select from, by config group.
    """
    example = ": `experiment=demo --help` shows the demo's" if "experiment" in choices else ""
    usage = USAGE.format(command=command, required=REQUIRED, example=example)
    lines = [*_wrapped(about), "", *usage.splitlines()]
    lines += ["", "Config groups (GROUP=NAME):"]
    for group, names in choices.items():
        lines += _wrapped(f"{group}: {', '.join(names)}", "  ", "      ")
    for group in option_groups(schema):
        title = f"{group.name}: {first_sentence(group.text)}" if group.name else "Options of the command:"
        lines += ["", *_wrapped(title)]
        for option in group.options:
            lines += _described(option, config)
    return "\n".join(lines)


def _described(option: Option, config: DictConfig) -> Iterator[str]:
    head = f"  {option.name}={_value(option, config)}"
    meaning = option.summary
    if len(head) >= TEXT_COLUMN:
        yield from _wrapped(head, "", "      ")
        head = ""
    if meaning or head:
        indent = " " * TEXT_COLUMN
        yield from (line.rstrip() for line in _wrapped(meaning, f"{head:{TEXT_COLUMN}}", indent))


def _value(option: Option, config: DictConfig) -> str:
    parent, _, name = option.name.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or name not in node:
        return option.default
    if OmegaConf.is_missing(node, name):
        return REQUIRED
    value = OmegaConf.to_container(node)[name]  # type: ignore[index]
    return " ".join(as_written(value).split())


def _wrapped(text: str, first: str = "", later: str = "") -> list[str]:
    plain = text.replace("``", "")
    return textwrap.wrap(
        plain, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
    ) or [first]
