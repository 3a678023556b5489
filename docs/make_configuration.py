"""Prints docs/configuration.md: every option of every command, read from ``configs/schema``.

python docs/make_configuration.py > docs/configuration.md
"""

from collections.abc import Iterator

from configs.reference import Option, OptionGroup, option_groups
from configs.schema import (
    ArmConfig,
    EvaluationConfig,
    JobConfig,
    ProblemsConfig,
    StudyConfig,
    TrainingConfig,
    WorkersConfig,
)

COMMANDS = (TrainingConfig, EvaluationConfig, JobConfig, WorkersConfig, ProblemsConfig, StudyConfig)
"""The config of each command; the groups that they share are printed once."""
HEAD = """# Configuration

Every option, with its type and default, made from the schema (`configs/schema`) that checks it. Set an option
as `NAME=VALUE` on the command line of any command that has it. `--cfg job` prints the resolved config. A
default `???` has to be set. The files of `configs/` differ from these defaults where they say so. A choice
such as `algo=ppo` or `experiment=demo` takes a file of the folder of that name.
"""


def _cell(text: str) -> str:
    """Text as it may stand in a cell of a table."""
    return text.replace("|", "\\|").replace("``", "`")


def _code(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`"


def _row(option: Option) -> str:
    anchor = f'<span id="{option.name}"></span>' if "." in option.name else ""
    return (
        f"| {anchor}`{option.name}` | {_code(option.type)} | {_code(option.default)} | {_cell(option.text)} |"
    )


def _table(options: tuple[Option, ...]) -> Iterator[str]:
    if not options:
        return
    yield '<div class="options" markdown>\n'
    yield "| option | type | default | meaning |"
    yield "|---|---|---|---|"
    yield from map(_row, options)
    yield "\n</div>\n"


def _section(group: OptionGroup) -> Iterator[str]:
    level = "##" + "#" * group.name.count(".")
    yield f"{level} {group.name}\n\n{_cell(group.text)}\n"
    yield from _table(group.options)


def page() -> str:
    """Returns the whole page as Markdown."""
    lines, shared = [HEAD, "## Options of one command\n"], {}
    for schema in COMMANDS:
        own, *parts = option_groups(schema)
        shared |= {part.name: part for part in parts}
        lines += [f"### {_cell(own.text)}\n", *_table(own.options)]
        links = [f"[{part.name}](#{part.name})" for part in parts if "." not in part.name]
        lines += [f"Groups: {', '.join(links)}\n"] if links else []
    (arm,) = option_groups(ArmConfig)
    lines += [f"### Entries of `arms`\n\n{arm.text}\n", *_table(arm.options)]
    for group in sorted(shared.values(), key=lambda group: group.name.split(".")):
        lines += _section(group)
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
