"""Dotted names in the documentation are modules, attributes or options that exist."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from conftest import REPO

from configs.schema import LaunchConfig, RewardsConfig, RolloutConfig, TrainConfig

PACKAGES = ("configs", "launch", "rewards", "rollout", "train")
OPTIONS = {"launch": LaunchConfig, "rewards": RewardsConfig, "rollout": RolloutConfig, "train": TrainConfig}
"""Sections of a config that share their name with a package."""
GENERATED = REPO / "docs" / "configuration.md"
"""Made from ``configs/schema``, whose docstrings it repeats."""
PAGES = sorted(set((REPO / "docs").glob("*.md")) - {GENERATED})
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *PAGES]
NAME = re.compile(rf"(?<![\w./])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
"""Not within a path or a longer name: ``configs/rollout.py`` and ``my_project.rewards`` are none of ours."""


def _bound(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that the statements of a module or class bind, imports included."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If):  # if TYPE_CHECKING: the exports of a package
            names |= _bound(node.body)
    return names


def _resolves(name: str) -> bool:
    """True if the dotted name is a module, a package, or an attribute of a module or of its class."""
    path, *parts = REPO, *name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    module = path / "__init__.py"
    if parts and (path / f"{parts[0]}.py").is_file():
        module = path / f"{parts.pop(0)}.py"
    if not module.is_file():
        return False
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for part in parts:
        found = _bound(body).get(part)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _is_option(name: str) -> bool:
    """True if the dotted name is an option of the section that its package shares its name with."""
    section, option = name.split(".")[:2]
    return section in OPTIONS and option in {field.name for field in dataclasses.fields(OPTIONS[section])}


def _names(path: Path) -> set[str]:
    text = re.sub(
        r"\[[^]]*\]\([^)]*\)", "", path.read_text(encoding="utf-8")
    )  # a page that is linked is no module
    return set(NAME.findall(text))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_dotted_name_of_ours_exists(path: Path):
    lost = {name for name in _names(path) if not (_resolves(name) or _is_option(name))}
    assert not lost, f"{path.name} names what does not exist: {sorted(lost)}"


def test_the_method_page_names_its_functions_in_full():
    names = _names(REPO / "docs" / "method.md")
    assert {"rollout.operators.ParallelDistilRefine", "train.loss.losses.truncated_reinforce"} <= names
    assert len([name for name in names if name.count(".") >= 2]) > 15


@pytest.mark.parametrize(
    "name",
    [
        "rollout.pool.WorkerPool",  # a module that moved
        "rollout.workspace.no_such_distiller",
        "rollout.operators.Operator.no_such_method",
        "train.losses",
        "launch.no_such_option",
    ],
)
def test_a_name_that_does_not_exist_is_found(name: str):
    assert not _resolves(name) and not _is_option(name)


@pytest.mark.parametrize(
    "name",
    ["rewards.score", "rollout.operators.Operator.calls", "train.loss", "configs.schema.algo.LOSS_TYPES"],
)
def test_modules_attributes_and_exports_are_found(name: str):
    assert _resolves(name)


def test_the_tests_that_documents_name_exist():
    named = re.compile(r"`(test_\w+)::(test_\w+)`")
    missing = [
        f"{document.name}: {file}::{test}"
        for document in DOCUMENTS
        for file, test in named.findall(document.read_text(encoding="utf-8"))
        if f"def {test}(" not in (REPO / "tests" / f"{file}.py").read_text(encoding="utf-8")
    ]
    assert missing == []
