"""What ran, in words, from ``config.yaml`` and ``versions.txt``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.thinking import ThinkingMarks
from rollout.page.view import Options

_PACKAGES = ("pdr-rl", "torch", "transformers", "deepspeed")


def read_options(folder: Path) -> Options:
    """Returns the content of ``config.yaml``; empty if there is none.

    Raises:
        ValueError: If the file is not a mapping in YAML.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds {type(options).__name__}, not the options of a run.")
    return options


def option(options: Options, path: str, default: Any = None) -> Any:
    """Returns an option by its dotted path; ``default`` if the run did not have it."""
    value: Any = options
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


def thinking_marks(options: Options) -> ThinkingMarks:
    """Returns the marks that separate thinking from solution."""
    usual = ThinkingMarks()
    return ThinkingMarks(
        open=option(options, "operator.thinking.open", usual.open),
        close=option(options, "operator.thinking.close", usual.close),
    )


def shared_facts(options: Options, folder: Path) -> dict[str, str]:
    """Returns what both kinds of run have: model, data, operator, sampling, versions, commit and machine."""
    facts = {
        "folder": str(folder),
        "model": _named(options, "model.path"),
        "data": _named(options, "data.name", "data.path", "data.eval_path", "data.source", "data.task"),
        "operator": describe_operator(option(options, "operator", {})),
        "sampling": _said(
            options,
            {
                "temperature": "rollout.temperature",
                "top_p": "rollout.top_p",
                "max completion tokens": "rollout.max_completion_length",
                "thinking tokens": "rollout.thinking_tokens",
                "dtype": "rollout.dtype",
            },
        ),
        "system prompt": _text(option(options, "operator.prompts.system")),
        "reward": _named(options, "rewards.kind", "rewards.path"),
        "seed": _text(option(options, "seed")),
    }
    return {name: value for name, value in (facts | _versions(folder)).items() if value}


def describe_operator(operator: Options) -> str:
    """Returns an operator with the options that shape its graph."""
    name = operator.get("name", "")
    if not operator.get("schedule") or name == "trace":
        return str(name)
    widths = ", ".join(map(str, operator["schedule"]))
    parts = [f"{name} [{widths}]", f"distiller {operator.get('distiller')}"]
    parts.append(f"workspace of at most {operator.get('workspace_tokens')} tokens")
    return ", ".join(parts)


def operator_name(operator: object) -> str:
    """Returns the name of a compared operator, which is listed by its name, or as its name -> its options."""
    if not isinstance(operator, Mapping):
        return str(operator)
    named = {name: options or {} for name, options in operator.items()}
    parts = {
        name: ", ".join(f"{key} {_text(value)}" for key, value in opts.items())
        for name, opts in named.items()
    }
    return ", ".join(f"{name} ({part})" if part else str(name) for name, part in parts.items())


def _named(options: Options, *paths: str) -> str:
    return ", ".join(dict.fromkeys(_text(option(options, path)) for path in paths if option(options, path)))


def _said(options: Options, paths: Mapping[str, str]) -> str:
    found = {name: option(options, path) for name, path in paths.items()}
    return ", ".join(f"{name} {_text(value)}" for name, value in found.items() if value)


def _text(value: object) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(folder: Path) -> dict[str, str]:
    """Returns commit, machine and versions of the main packages from ``versions.txt``, if it is there."""
    path = folder / "versions.txt"
    if not path.is_file():
        return {}
    lines = [line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    said = {name: value for name, _, value in lines}
    packages = ", ".join(f"{name} {said[name]}" for name in _PACKAGES if name in said)
    return {"commit": said.get("commit", ""), "machine": said.get("machine", ""), "versions": packages}
