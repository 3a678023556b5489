"""What a config error says: the option that is meant, the choices that there are, the remedy.

tests/test_configs_hydra.py pins the messages of Hydra and OmegaConf that are recognised here.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from configs.quoting import unreadable

RENAMED = {("data", "jsonl"): "file"}
"""Presets of earlier versions, by group and name -> their name now."""

WITHOUT_EXPERIMENT = ("problems", "workers")
"""Root configs of commands that run no experiment."""


class ConfigError(ValueError):
    """An invalid config: the message names the option and the remedy."""


def _table(node: DictConfig, key: Any) -> DictConfig | None:
    """Returns the child ``key`` if it is a table; None if it is missing or interpolated (no value yet)."""
    if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
        return None
    child = node[key]
    return child if isinstance(child, DictConfig) else None


def _keys(node: DictConfig, prefix: str = "") -> Iterable[str]:
    """Yields all keys with their full names, parents before their children."""
    for key in node:
        name = f"{prefix}{key}"
        yield name
        if (child := _table(node, key)) is not None:
            yield from _keys(child, f"{name}.")


def nearest(key: str, valid: list[str]) -> str:
    """Returns a hint naming the valid key most like ``key``, or an empty string.

    Tries very similar names under the same parent, then the same last name under any parent, then similar
    names under the same parent, then similar whole keys, then similar last names.
    """
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(valid)}
    parent, _, leaf = key.rpartition(".")
    siblings = [name for name in valid if name.rpartition(".")[0] == parent]
    same = [name for name in valid if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.9)
    close = close or difflib.get_close_matches(key, same, n=1, cutoff=0)
    close = close or difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    close = close or [last[m] for m in difflib.get_close_matches(leaf, last, n=1, cutoff=0.6)]
    return f" Did you mean '{close[0]}'?" if close else ""


def has_experiments(group: str, config_name: str) -> bool:
    """Returns True if ``group`` is that of the experiments, and the command of this root config runs them."""
    return group == "experiment" and config_name not in WITHOUT_EXPERIMENT


def _valid_keys(config_name: str) -> list[str]:
    """Returns every option, and the groups that a command line may select from."""
    loader = GlobalHydra.instance().config_loader()
    keys = set(_keys(compose(config_name)))
    groups = [name for name in loader.list_groups("") if name in keys or has_experiments(name, config_name)]
    nested = [f"{group}/{name}" for group in groups for name in loader.list_groups(group)]
    return sorted({*keys, *groups, *nested})


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterable[str]:
    """Yields keys that no schema has: Hydra's ``+key=value`` adds them without a check."""
    schema = OmegaConf.get_type(node)
    # A node without a schema, e.g. a dict of task options, may hold any key.
    known = {item.name for item in fields(schema)} if schema and is_dataclass(schema) else set(node)
    for key in node:
        if key not in known:
            yield f"{prefix}{key}"
        elif (child := _table(node, key)) is not None:
            yield from _unknown_keys(child, f"{prefix}{key}.")


def refuse_unknown_keys(config: DictConfig) -> None:
    """Raises ConfigError for the first unknown key."""
    unknown = list(_unknown_keys(config))
    if unknown:
        valid = [key for key in _keys(config) if key not in unknown]
        raise ConfigError(f"'{unknown[0]}' is not an option.{nearest(unknown[0], valid)}")


def _no_such_choice(group: str, name: str) -> ConfigError:
    """Returns the error that a group of presets has none of this name."""
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    wanted = RENAMED.get((group, name))
    hint = f" Did you mean '{group}={wanted}'?" if wanted else nearest(name, known)
    return ConfigError(f"There is no {group}={name}; choose one of {', '.join(known)}.{hint}")


def explain(error: Exception, config_name: str) -> ConfigError:
    """Converts an error of Hydra or OmegaConf into one sentence with the nearest valid key."""
    if isinstance(error, OverrideParseException):
        return ConfigError(unreadable(error.override))
    text = str(error)
    cause = str(error.__cause__ or "")
    if absent := re.search(r"Could not find '(.+)/([^/']+)'", text):
        return _no_such_choice(*absent.groups())
    # OmegaConf names the key in the cause, Hydra in its own message.
    match = re.search(r"full_key: (\S+)", cause) or re.search(r"full_key: (\S+)", text)
    match = match or re.search(r"Could not override '([^']+)'", text)
    unknown = any(s in text + cause for s in ("not in struct", "Could not override", "' not in '"))
    if match and unknown and "could not be converted" not in text + cause:
        key = match.group(1)
        if key == "experiment" and config_name in WITHOUT_EXPERIMENT:
            return ConfigError(
                "This command takes no experiment, which sets options of a whole run. Set the options that "
                "it has, such as data, rewards and operator.prompts, as the experiment's file does."
            )
        return ConfigError(f"'{key}' is not an option.{nearest(key, _valid_keys(config_name))}")
    # Any other error: the key, and the cause without OmegaConf's lines on keys and types.
    lines = [line.strip() for line in (cause or text).splitlines()]
    noise = ("full_key:", "reference_type=", "object_type=")
    detail = " ".join(line for line in lines if line and not line.startswith(noise))
    if match and match.group(1) not in detail:
        detail = f"{match.group(1)}: {detail}"
    head = text.splitlines()[0]
    return ConfigError(head if detail.startswith(head) and len(detail) < len(head) else detail or head)


def explain_index(error: TypeError, overrides: list[str]) -> ConfigError:
    """Converts OmegaConf's error about a list with a name as its index."""
    match = re.search(r"Index '([^']+)'", str(error))
    index = match.group(1) if match else ""
    for item in overrides:
        key = item.partition("=")[0]
        before, found, _ = f"{key}.".partition(f".{index}.")
        if found:
            name = before.lstrip("+~")
            return ConfigError(
                f"'{key}' is not an option: '{name}' is a list. Set it as a whole, {name}=[...]."
            )
    return ConfigError(str(error))
