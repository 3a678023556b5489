"""What is relied upon in Hydra and OmegaConf beyond their public API: an upgrade that changes it fails here.

Private is the parser of Hydra's command line. Not documented are ``GlobalHydra``, its config loader, and the
texts of error messages, which ``configs.config_errors`` turns into one line with the nearest key.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import omegaconf
import pytest
from conftest import REPO
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from configs.schema import register

CHANGED = (
    f"hydra-core {hydra.__version__} with omegaconf {omegaconf.__version__} no longer does what "
    "configs/compose.py or config_errors.py relies on: adapt it, or pin the version before. Changed: "
)
RELIED_UPON = {
    "configs/config_errors.py": {"hydra.core.global_hydra.GlobalHydra"},
    "configs/compose.py": {
        "hydra._internal.utils.get_args_parser",
        "hydra.core.global_hydra.GlobalHydra",
        "hydra.core.hydra_config.HydraConfig",
    },
    "configs/schema/commands.py": {"hydra.core.config_store.ConfigStore"},
    "launch/__main__.py": {"hydra.core.hydra_config.HydraConfig"},
}
"""Every import from inside Hydra. ``ConfigStore`` and ``HydraConfig`` are documented for users."""


@pytest.fixture
def composing() -> Iterator[None]:
    register()
    with initialize_config_module("configs", version_base="1.3"):
        yield


def _inner_imports(path: Path) -> set[str]:
    """What a file imports from ``hydra._*``, ``hydra.core`` or ``omegaconf._*``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if re.match(r"(hydra|omegaconf)\.(_|core\.)", name)}


def test_nothing_else_of_hydras_inside_is_used():
    files = {
        str(path.relative_to(REPO)): _inner_imports(path)
        for package in ("configs", "launch", "rewards", "rollout", "train")
        for path in (REPO / package).rglob("*.py")
    }
    assert {name: found for name, found in files.items() if found} == RELIED_UPON


def test_the_command_line_parser_has_the_flags_that_commands_look_at():
    parsed = get_args_parser().parse_args(["--config-dir", "mine", "seed=1", "algo=grpo"])
    assert (parsed.config_dir, parsed.overrides) == ("mine", ["seed=1", "algo=grpo"]), CHANGED + "overrides"
    for flag in ("cfg", "info", "help", "hydra_help", "shell_completion", "multirun"):
        assert not getattr(parsed, flag, "it is missing"), f"{CHANGED}the flag {flag} of get_args_parser"
    for name, arguments in {
        "cfg": ["--cfg", "job"],
        "info": ["--info", "config"],
        "help": ["--help"],
        "hydra_help": ["--hydra-help"],
        "shell_completion": ["--shell-completion"],
        "multirun": ["--multirun"],
    }.items():
        assert getattr(get_args_parser().parse_args(arguments), name), f"{CHANGED}{arguments[0]}"


def test_the_global_instance_is_there_only_while_configs_are_composed():
    register()
    assert not GlobalHydra.instance().is_initialized(), CHANGED + "GlobalHydra.is_initialized before"
    with initialize_config_module("configs", version_base="1.3"):
        assert GlobalHydra.instance().is_initialized(), CHANGED + "GlobalHydra.is_initialized within"
    assert not GlobalHydra.instance().is_initialized(), CHANGED + "what is left after composing"


@pytest.mark.usefixtures("composing")
def test_the_config_loader_lists_groups_and_their_choices():
    loader = GlobalHydra.instance().config_loader()
    folders = {path.name for path in (REPO / "configs").iterdir() if any(path.glob("*.yaml"))}
    assert set(loader.list_groups("")) == folders | {"hydra", "schema"}, CHANGED + "list_groups('')"
    assert loader.list_groups("operator") == ["prompts", "thinking"], CHANGED + "list_groups of a group"
    choices = sorted(path.stem for path in (REPO / "configs" / "operator").glob("*.yaml"))
    assert loader.get_group_options("operator") == choices, CHANGED + "get_group_options"


@pytest.mark.parametrize(
    ("override", "text", "cause"),
    [
        ("qq=1", r"^Could not override 'qq'", r"not in 'TrainingConfig'\n +full_key: qq\n"),
        ("algo.qq=1", r"^Could not override 'algo\.qq'", r"not in 'AlgoConfig'\n +full_key: algo\.qq\n"),
        ("operator/qq=1", r"^Could not override 'operator/qq'", r"not in .*\n +full_key: operator/qq\n"),
        (
            "seed=a",
            r"override seed=a$",
            r"could not be converted to Integer\n +full_key: seed\n.*object_type",
        ),
        ("operator=qq", r"^In 'training': Could not find 'operator/qq'\n\nAvailable options", r"^$"),
    ],
)
@pytest.mark.usefixtures("composing")
def test_errors_of_composing_have_the_words_that_are_looked_for(override: str, text: str, cause: str):
    with pytest.raises(HydraException) as error:
        compose("training", [override])
    assert re.search(text, str(error.value)), f"{CHANGED}the message is {str(error.value)!r}"
    behind = str(error.value.__cause__ or "")
    assert re.search(cause, behind), f"{CHANGED}the message of the cause is {behind!r}"


@pytest.mark.usefixtures("composing")
def test_a_missing_value_is_named_by_its_full_key():
    config = compose("training", ["data.path=x"])
    with pytest.raises(MissingMandatoryValue) as error:
        OmegaConf.to_object(config)
    assert re.search(r"\n +full_key: model\.path\n", str(error.value)), f"{CHANGED}{str(error.value)!r}"


@pytest.mark.usefixtures("composing")
def test_a_plus_adds_a_key_that_the_schemas_type_tells_apart():
    config = compose("training", ["+algo.qq=1"])
    assert isinstance(config.algo, DictConfig) and "qq" in config.algo, CHANGED + "what + adds"
    assert OmegaConf.get_type(config.algo).__name__ == "AlgoConfig", CHANGED + "OmegaConf.get_type"


def test_a_check_that_fails_comes_through_as_it_was_raised():
    register()
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("training", ["model.path=x", "data.path=x", "train.max_steps=0"])
    with pytest.raises(ValueError, match=r"^train\.max_steps must be at least 1, got 0\.$"):
        OmegaConf.to_object(config)


@pytest.mark.component
def test_a_job_of_a_sweep_knows_its_mode_its_overrides_and_its_folder(tmp_path: Path):
    code = (
        "from hydra.core.hydra_config import HydraConfig\n"
        "from configs.compose import run\n"
        "def main(config, overrides):\n"
        "    job = HydraConfig.get()\n"
        "    print(job.mode.name, list(job.overrides.task), job.runtime.output_dir)\n"
        "run('job', main)\n"
    )
    arguments = ["--multirun", "model.path=x", "data.path=x", "seed=1,2", f"hydra.sweep.dir={tmp_path / 's'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("MULTIRUN")]
    assert said == [
        f"MULTIRUN ['model.path=x', 'data.path=x', 'seed={seed}'] {tmp_path / 's' / str(number)}"
        for number, seed in enumerate((1, 2))
    ], CHANGED + "HydraConfig"
