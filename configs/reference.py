"""Every option of a command as typed records, read from ``configs/schema``: for ``--help`` and documentation.

    for group in option_groups(TrainingConfig):
        for option in group.options:
            print(option.name, option.type, option.default, option.text)

Names, types and defaults are those of the dataclasses. A field's text is the string literal that follows it
in the source, which Python itself does not keep.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import MISSING

REQUIRED = "???"
"""Default of an option that must be set, as Hydra writes it."""

_SENTENCE = re.compile(r".+?(?<!e\.g)(?<!i\.e)(?<!etc)[.](?=\s|$)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a command."""

    name: str
    """Full name, as on a command line, e.g. ``algo.beta``."""
    type: str
    """Type as annotated, e.g. ``list[str]``."""
    default: str
    """Default as on a command line, e.g. ``[trace,pdr]``; ``REQUIRED`` if there is none."""
    text: str
    """Its documentation in one paragraph; empty if its name has to suffice."""

    @property
    def summary(self) -> str:
        """First sentence of ``text``."""
        return first_sentence(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionGroup:
    """The options of one dataclass of ``configs/schema``."""

    name: str
    """Common prefix of the options, e.g. ``operator.prompts``; empty for those of the command itself."""
    text: str
    """Documentation of the dataclass in one paragraph."""
    options: tuple[Option, ...]


def option_groups(schema: type) -> Iterator[OptionGroup]:
    """Yields the options of a dataclass, its own first, then those of the dataclasses among its fields."""
    return _groups(schema, "", "")


def first_sentence(text: str) -> str:
    """Returns ``text`` up to the end of its first sentence."""
    match = _SENTENCE.match(text)
    return match.group() if match else text


def as_written(value: Any) -> str:
    """Returns a value as it is written on a command line, e.g. ``[trace,pdr]``, ``null`` or ``""``."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list):
        return f"[{','.join(map(as_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_written(each)}' for key, each in value.items())}}}"
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def _groups(schema: type, prefix: str, text: str) -> Iterator[OptionGroup]:
    hints = get_type_hints(schema)
    texts = _field_texts(schema)
    own = [item for item in fields(schema) if not is_dataclass(hints[item.name])]
    yield OptionGroup(
        name=prefix,
        text=text or _paragraph(schema.__doc__ or ""),
        options=tuple(
            Option(
                name=_joined(prefix, item.name),
                type=_type_name(hints[item.name]),
                default=_default(item),
                text=texts.get(item.name, ""),
            )
            for item in own
        ),
    )
    for item in fields(schema):
        if isinstance(hint := hints[item.name], type) and is_dataclass(hint):
            yield from _groups(hint, _joined(prefix, item.name), texts.get(item.name, ""))


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _type_name(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", name)  # without modules


def _default(item: "Field[Any]") -> str:
    if item.default_factory is not NO_DEFAULT:
        return as_written(item.default_factory())
    return REQUIRED if item.default in (NO_DEFAULT, MISSING) else as_written(item.default)


def _field_texts(schema: type) -> dict[str, str]:
    """Returns the texts of all fields by name; a subclass's own take precedence."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base):
            texts |= _texts_of_file(inspect.getfile(base)).get(base.__name__, {})
    return texts


@cache
def _texts_of_file(path: str) -> dict[str, dict[str, str]]:
    """Returns class -> field -> text, for the classes of a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: dict(_documented(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            yield field.target.id, _paragraph(after.value.value)


def _paragraph(text: str) -> str:
    return " ".join(textwrap.dedent(text).split())
