"""Turns a command line into a checked dataclass, with errors that name the nearest valid key.

tests/test_configs_hydra.py pins the parts of Hydra used here that are not public API, messages included.
"""

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.help_text import help_text
from configs.open_tables import with_new_keys
from configs.quoting import unreadable
from configs.rank_errors import record_reason
from configs.schema import (
    OWN,
    SCHEMAS,
    EvaluationConfig,
    JobConfig,
    OperatorConfig,
    ProblemsConfig,
    RolloutConfig,
    StudyConfig,
    TrainingConfig,
    WorkersConfig,
    operator_name,
    operator_spec,
    register,
)
from configs.schema.checks import has_user

Config = TypeVar(
    "Config", TrainingConfig, EvaluationConfig, JobConfig, StudyConfig, WorkersConfig, ProblemsConfig
)
Part = TypeVar("Part", OperatorConfig, RolloutConfig)


RENAMED = {("data", "jsonl"): "file"}
"""Presets of earlier versions, by group and name -> their name now."""


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


def _nearest(key: str, valid: list[str]) -> str:
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


def _valid_keys(config_name: str) -> list[str]:
    """Returns every option, and the groups that a command line may select from."""
    loader = GlobalHydra.instance().config_loader()
    keys = set(_keys(compose(config_name)))
    groups = [name for name in loader.list_groups("") if name in keys or name == "experiment"]
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


def _refuse_unknown_keys(config: DictConfig) -> None:
    """Raises ConfigError for the first unknown key."""
    unknown = list(_unknown_keys(config))
    if unknown:
        valid = [key for key in _keys(config) if key not in unknown]
        raise ConfigError(f"'{unknown[0]}' is not an option.{_nearest(unknown[0], valid)}")


def _no_such_choice(group: str, name: str) -> ConfigError:
    """Returns the error that a group of presets has none of this name."""
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    wanted = RENAMED.get((group, name))
    hint = f" Did you mean '{group}={wanted}'?" if wanted else _nearest(name, known)
    return ConfigError(f"There is no {group}={name}; choose one of {', '.join(known)}.{hint}")


def _explain(error: Exception, config_name: str) -> ConfigError:
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
        return ConfigError(f"'{key}' is not an option.{_nearest(key, _valid_keys(config_name))}")
    # Any other error: the key, and the cause without OmegaConf's lines on keys and types.
    lines = [line.strip() for line in (cause or text).splitlines()]
    noise = ("full_key:", "reference_type=", "object_type=")
    detail = " ".join(line for line in lines if line and not line.startswith(noise))
    if match and match.group(1) not in detail:
        detail = f"{match.group(1)}: {detail}"
    head = text.splitlines()[0]
    return ConfigError(head if detail.startswith(head) and len(detail) < len(head) else detail or head)


def _explain_index(error: TypeError, overrides: list[str]) -> ConfigError:
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


def resolve(config: DictConfig) -> Any:
    """Converts a composed config to its dataclass, which runs all checks.

    Raises:
        ConfigError: If a value is missing or a check fails.
    """
    _refuse_unknown_keys(config)
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        key = re.search(r"full_key: (\S+)", str(error))
        raise ConfigError(f"{key.group(1) if key else error} must be set.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.__cause__ or error).splitlines()[0]) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load(config_name: str, overrides: list[str] | None = None) -> Any:
    """Composes ``configs/<config_name>.yaml`` with ``overrides`` and returns the checked dataclass.

    Raises:
        ConfigError: For an unknown key (with the nearest valid one), an invalid value, or a missing value.
    """
    return resolve(_composed(config_name, overrides or []))


def _composed(config_name: str, overrides: list[str]) -> DictConfig:
    """Returns the composed config; its keys are checked, its values are not yet."""
    register()
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():  # a command has initialised it, with its search path
            stack.enter_context(initialize_config_module("configs", version_base="1.3"))
        try:
            config = compose(config_name, with_new_keys(overrides, SCHEMAS[config_name]))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise _explain(error, config_name) from error
        except TypeError as error:  # an override below a list
            raise _explain_index(error, overrides) from error
    _refuse_unknown_keys(config)
    return config


def load_operator(spec: str | Mapping[str, Any], base: OperatorConfig) -> OperatorConfig:
    """Returns an operator of configs/operator, or ``base``, the run's own, if it has this name.

    Options that the operator's file does not set, prompts and thinking marks are those of the run, so that
    compared operators differ in nothing else. ``source``, ``outcome`` and ``draft_policy`` are an exception:
    they are only its own (``configs.schema.OWN``).

    Args:
        spec: The name of a file, or a mapping of one name to options, which bind this variant alone.
        base: The run's own operator.

    Raises:
        ConfigError: If there is no such file, or the resulting operator fails a check.
    """
    try:
        name, options = operator_spec(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if options:
        named = {**options, "name": operator_name(spec)}
        return with_options(load_operator(name, base), named, f"operators.{name}")
    if name == base.name:
        return base
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():  # a command has initialised it, with its search path
            stack.enter_context(initialize_config_module("configs", version_base="1.3"))
        known = GlobalHydra.instance().config_loader().get_group_options("operator")
        if name not in known:
            raise ConfigError(
                f"There is no operator '{name}'; choose one of {', '.join(known)}.{_nearest(name, known)}"
            )
        try:
            node = compose(f"operator/{name}").operator
        except HydraException as error:
            raise ConfigError(str(error).splitlines()[0]) from error
    own = {key: getattr(OperatorConfig, key) for key in OWN}
    own |= {key: node[key] for key in node if key not in ("prompts", "thinking")}
    merged = OmegaConf.structured(base)
    merged.merge_with(own)
    return resolve(merged)


def with_options(base: Part, options: Mapping[str, Any], part: str) -> Part:
    """Returns ``base``, a part of a run's config, with some options replaced; all checks run.

    Args:
        base: A complete part: no value is missing.
        options: New values by field name.
        part: Name of ``base`` on a command line, e.g. ``rollout``; used in errors.

    Raises:
        ConfigError: For an unknown name (with the nearest valid one), or a value that fails a check.
    """
    known = list(vars(base))
    node = OmegaConf.structured(base)
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"'{name}' is not an option of {part}.{_nearest(name, known)}")
        try:
            node.merge_with({name: value})
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{part}.{name} is {value!r}: {str(error).splitlines()[0]}") from error
    return resolve(node)


def _refuse_passwords(config_name: str, overrides: list[str]) -> None:
    """Ends the program if an override holds a URL with a password: a sweep writes its overrides to files."""
    for override in overrides:
        name, _, value = override.partition("=")
        if any(map(has_user, re.findall(r"https?://[^\s,'\"\]]*", value))):
            print(
                f"{config_name}: {name} holds a URL with a user name or password. Leave it out and set "
                "VLLM_API_KEY or OPENAI_API_KEY in the environment.",
                file=sys.stderr,
            )
            sys.exit(2)


def search_arguments() -> list[str]:
    """Returns the arguments that added the user's own config groups to the running command, for another.

    They are ``--config-dir`` with an absolute path, and overrides of ``hydra.searchpath``.
    """
    running = HydraConfig.get()
    own = [source.path for source in running.runtime.config_sources if source.provider == "command-line"]
    paths = [item for item in running.overrides.hydra if item.startswith("hydra.searchpath=")]
    return [*(part for path in own for part in ("--config-dir", str(Path(path).absolute()))), *paths]


def _help(config_name: str, overrides: list[str]) -> str:
    """Returns the help of the running command, whose module docstring says what it does."""
    with initialize_config_module("configs", version_base="1.3"):
        config = _composed(config_name, overrides)
        loader = GlobalHydra.instance().config_loader()
        groups = [name for name in loader.list_groups("") if name in config or name == "experiment"]
        choices = {name: loader.get_group_options(name) for name in groups}
    running = sys.modules["__main__"]
    name = (running.__spec__.name if running.__spec__ else config_name).removesuffix(".__main__")
    about = (running.__doc__ or "").split("\n\n")[0]
    schema = OmegaConf.get_type(config)
    assert schema is not None
    return help_text(f"python -m {name}", about, config, schema, choices)


def run(
    config_name: str,
    main: Callable[[Any, list[str]], float | None],
    refused: Callable[[list[str]], float | None] = lambda _: None,
) -> None:
    """Entry point of a command: checks the command line, then calls Hydra.

    ``main(config, overrides)`` receives the checked dataclass and the overrides it was made from, in a sweep
    those of one job; its return value is the objective of a sweeper. Hydra's own flags (``--cfg job``,
    ``--help``, ``--multirun``, ``--config-dir``) work as usual. A config error ends the program with
    status 2; in a sweep it ends only its job, and ``refused(overrides)`` is called in place of ``main``.
    """
    register()
    args = get_args_parser().parse_args()
    if args.help or args.hydra_help or args.cfg or args.info:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the output is often cut by head
    overrides = list(args.overrides)
    _refuse_passwords(config_name, overrides)
    sys.argv[1:] = with_new_keys(sys.argv[1:], SCHEMAS[config_name])  # which ``hydra.main`` reads below
    # A folder with the user's own groups. Added here for the check; ``hydra.main`` below adds it itself.
    own = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    try:
        if args.help:
            print(_help(config_name, [*own, *overrides]))
            sys.exit()
        if args.cfg or args.info:
            _composed(config_name, [*own, *overrides])
        elif not (args.hydra_help or args.shell_completion or args.multirun):
            load(config_name, [*own, *overrides])
    except ConfigError as error:
        record_reason(f"{config_name}: {error}")
        if os.environ.get("RANK", "0") == "0":  # printed once, not by every rank
            print(f"{config_name}: {error}", file=sys.stderr)
        sys.exit(2)

    @hydra.main(version_base="1.3", config_path="pkg://configs", config_name=config_name)
    def start(config: DictConfig) -> float | None:
        overrides = list(HydraConfig.get().overrides.task)
        try:
            checked = resolve(config)
        except ConfigError as error:  # from a job of a sweep: single runs are checked above
            print(f"{config_name} ({' '.join(overrides)}): {error}", file=sys.stderr)
            return refused(overrides) if HydraConfig.get().mode is RunMode.MULTIRUN else sys.exit(2)
        return main(checked, overrides)

    start()
