"""Which package may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

OURS = {"configs", "launch", "rewards", "rollout", "train"}
ALLOWED = {
    "configs": {"configs"},
    "launch": {"launch", "configs"},
    "rewards": {"rewards", "configs"},
    "rollout": {"rollout", "configs"},
    "train": {"train", "rollout", "rewards", "configs"},
}
"""Besides, a package's ``__main__.py`` composes: it may import every package but ``train``."""


def _modules(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Full dotted names of everything that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _importers(name: str) -> set[str]:
    return {
        str(path.relative_to(REPO))
        for package in OURS
        for path in _modules(package)
        if any(f"{imported}.".startswith(f"{name}.") for imported in _imports(path))
    }


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_the_packages_below_it(package: str):
    modules = _modules(package)
    assert modules
    for path in modules:
        found = {name.split(".")[0] for name in _imports(path)} & OURS
        allowed = ALLOWED[package] | (OURS - {"train"} if path.name == "__main__.py" else set())
        assert found <= allowed, path.relative_to(REPO)


def test_only_the_workers_extension_imports_vllm():
    assert _importers("vllm") == {"rollout/weights/vllm_extension.py"}


def test_configs_rewards_and_launch_import_no_torch():
    packages = {name.split("/")[0] for name in _importers("torch")}
    assert packages <= {"rollout", "train"}
    assert "train" in packages


@pytest.mark.parametrize("library", ["deepspeed", "accelerate", "torch.distributed"])
@pytest.mark.component
def test_only_train_knows_of_ranks(library: str):
    outside = {name for name in _importers(library) if not name.startswith("train/")}
    # Weights go over groups of two, which are none of a run's ranks.
    assert outside <= ({"rollout/weights/transfer.py"} if library == "torch.distributed" else set())


@pytest.mark.component
def test_composing_a_config_loads_neither_torch_nor_vllm():
    code = (
        "import sys, configs.schema, configs.compose\n"
        "configs.compose.load('training', ['model.path=x', 'data.path=x'])\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
