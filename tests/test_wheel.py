"""What the wheel holds is enough: configs are found from it, away from the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPO

pytestmark = pytest.mark.component

PACKAGES = ("configs", "launch", "rewards", "rollout", "train")
DATA = {".css", ".html", ".js", ".json", ".py", ".woff2", ".yaml"}
"""What an installed package reads."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, so that nothing is written into the clone, unzipped."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (REPO / "pyproject.toml", REPO / "README.md", *REPO.glob("LICENSE*")):
        shutil.copy(path, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(source)], check=True, capture_output=True, text=True, timeout=180)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def _python(unpacked: Path, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_and_every_data_file_is_in_the_wheel(unpacked: Path):
    expected = {
        path.relative_to(REPO)
        for name in PACKAGES
        for path in (REPO / name).rglob("*")
        if path.suffix in DATA
    }
    held = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.suffix in DATA}
    assert len(expected) > 40
    assert held == expected


def test_configs_compose_from_the_wheel_in_an_empty_folder(unpacked: Path, tmp_path: Path):
    code = (
        "import configs, configs.compose\n"
        "print(configs.__file__)\n"
        "for name in ('training', 'evaluation'):\n"
        "    config = configs.compose.load(name, ['model.path=x', 'data=reasoning_gym', 'operator=sr'])\n"
        "    print(config.operator.schedule)"
    )
    where, *schedules = _python(unpacked, tmp_path, "-c", code).splitlines()
    assert Path(where) == unpacked / "configs" / "__init__.py"
    assert schedules == ["[1, 1, 1]"] * 2


@pytest.mark.integration
def test_a_command_of_the_wheel_prints_its_config(unpacked: Path, tmp_path: Path):
    shown = _python(unpacked, tmp_path, "-m", "rollout", "--cfg", "job", "model.path=x", "data=reasoning_gym")
    assert "task: chain_sum" in shown
    assert list(tmp_path.iterdir()) == []
