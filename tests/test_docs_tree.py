"""The tree of docs/architecture.md lists exactly the files and folders that exist, each with a gloss."""

import re
from pathlib import Path

import pytest
from conftest import REPO

PACKAGES = ("configs", "launch", "rewards", "rollout", "train")
NOT_LISTED = {"__init__.py", "__pycache__"}
START_HERE = {
    "rollout/operators.py",
    "rollout/workspace.py",
    "train/loop.py",
    "train/loss/losses.py",
    "configs/schema/",
}


def _tree() -> dict[str, str]:
    """Path -> gloss, of the one fenced block that lists the packages. A folder's path ends with ``/``."""
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(rollout/ .*?)^```", text, re.S | re.M)
    lines = [line for line in block.splitlines() if line]
    entries = [(path, gloss) for path, _, gloss in (line.partition(" ") for line in lines)]
    assert len(dict(entries)) == len(entries), "a path is listed twice"
    return {path: gloss.strip() for path, gloss in entries}


def _name(path: Path) -> str:
    """As the tree writes it: relative to the repository, a folder with ``/`` at its end."""
    return f"{path.relative_to(REPO)}{'/' if path.is_dir() else ''}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_lists_every_room_of_a_package_and_no_other(package: str):
    rooms = {path for path in _tree() if re.fullmatch(rf"{package}/[^/]+/?", path)}
    there = {_name(path) for path in (REPO / package).iterdir() if path.name not in NOT_LISTED}
    assert rooms == there


def test_every_path_of_the_tree_exists_and_has_a_gloss():
    tree = _tree()
    assert {f"{package}/" for package in PACKAGES} <= set(tree)
    for path, gloss in tree.items():
        assert (REPO / path).exists() and _name(REPO / path) == path
        assert gloss, path


def test_the_tree_marks_where_to_start():
    assert {path for path, gloss in _tree().items() if gloss.startswith("start here: ")} == START_HERE
