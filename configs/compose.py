"""Turns a command line into a checked dataclass, with errors that name the nearest valid key.

tests/test_configs_hydra.py pins the parts of Hydra used here that are not public API, messages included.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.config_errors import (
    ConfigError,
    explain,
    explain_index,
    has_experiments,
    nearest,
    refuse_unknown_keys,
)
from configs.help_text import help_text
from configs.open_tables import with_new_keys
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


def resolve(config: DictConfig) -> Any:
    """Converts a composed config to its dataclass, which runs all checks.

    Raises:
        ConfigError: If a value is missing or a check fails.
    """
    refuse_unknown_keys(config)
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
            raise explain(error, config_name) from error
        except TypeError as error:  # an override below a list
            raise explain_index(error, overrides) from error
    refuse_unknown_keys(config)
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
                f"There is no operator '{name}'; choose one of {', '.join(known)}.{nearest(name, known)}"
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
            raise ConfigError(f"'{name}' is not an option of {part}.{nearest(name, known)}")
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
        groups = [
            name for name in loader.list_groups("") if name in config or has_experiments(name, config_name)
        ]
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
