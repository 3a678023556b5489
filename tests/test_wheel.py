"""The wheel works in an environment of its own, away from the clone: every command finds its files."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import REPO
from test_first_words import COMMANDS, WITH_ARGPARSE

pytestmark = pytest.mark.component

PACKAGES = ("configs", "launch", "rewards", "rollout", "train")
DATA = {".css", ".html", ".js", ".json", ".jsonl", ".py", ".woff2", ".yaml"}
"""What an installed package reads."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, so that nothing is written into the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (REPO / "pyproject.toml", REPO / "README.md", *REPO.glob("LICENSE*")):
        shutil.copy(path, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(source)], check=True, capture_output=True, text=True, timeout=180)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds the wheel, and sees the libraries installed here."""
    folder = tmp_path_factory.mktemp("environment")
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=300)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    run([*pip, "install", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)])
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, such as the clone's, are not read.
    (packages / "libraries.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return python


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the installed Python in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed), *arguments]
        return subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def test_every_module_and_every_data_file_is_in_the_wheel_and_no_other(wheel: Path):
    expected = {
        str(path.relative_to(REPO))
        for name in PACKAGES
        for path in (REPO / name).rglob("*")
        if path.suffix in DATA
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if Path(name).suffix in DATA}
    assert len(expected) > 40
    assert held == expected


def test_the_packages_are_those_of_the_wheel(run, installed: Path):
    code = f"import {', '.join(PACKAGES)}\nfor each in ({', '.join(PACKAGES)}): print(each.__file__)"
    places = run("-c", code).stdout.splitlines()
    assert len(places) == len(PACKAGES)
    assert all(Path(place).is_relative_to(installed.parents[1]) for place in places)


@pytest.mark.parametrize("command", [*COMMANDS, *WITH_ARGPARSE])
def test_every_command_of_the_wheel_shows_its_help_and_writes_nothing(run, tmp_path: Path, command: str):
    done = run("-m", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert command in done.stdout.partition("\n")[0]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_wheel_composes_its_config_to_refuse_an_option(run, command: str):
    option = "output_dir" if command == "train.study" else "model.path"
    refused = run("-m", command, f"{option}h=x")
    assert refused.returncode == 2
    assert f"is not an option. Did you mean '{option}'?" in refused.stderr


def test_a_command_of_the_wheel_prints_its_config(run):
    shown = run("-m", "rollout", "--cfg", "job", "model.path=x", "data=reasoning_gym", "operator=sr")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "task: chain_sum" in shown.stdout and "kind: sr" in shown.stdout


def test_the_wheel_reads_a_file_of_problems_with_the_shipped_prompts(run, tmp_path: Path):
    (tmp_path / "empty" / "problems.csv").write_text("question,answer\n1 + 1?,2\nHalf of 1?,1/2\n")
    done = run("-m", "rollout.problems", "data.path=problems.csv")
    assert done.returncode == 0, done.stderr
    assert "usable: 2 of 2" in done.stdout
    assert "1 + 1?\n\nReason step by step" in done.stdout


def test_the_wheel_plans_a_run_with_its_own_architectures_and_accelerate_files(run):
    done = run("-m", "launch.plan", "experiment=qwen3_8b_pdr", "nodes=4", "gpus=8", "hardware=h100")
    assert done.returncode == 0, done.stderr
    assert "trainer:workers" in done.stdout


def test_the_wheel_scores_a_file_of_answers(run, tmp_path: Path):
    (tmp_path / "empty" / "in.jsonl").write_text('{"gold": "1/2", "pred": "It is \\\\boxed{0.5}."}\n')
    done = run("-m", "rewards", "score", "in.jsonl", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1 scored, 0 broken lines, 100.00% correct" in done.stdout


def test_the_run_page_of_the_wheel_holds_its_scripts_and_libraries(run, tmp_path: Path):
    folder = tmp_path / "empty" / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "reward/trace": 0.5}\n{"step": 2, "reward/trace": 0.6}\n'
    )
    done = run("-m", "train.report_page", "run")
    assert done.returncode == 0, done.stderr
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "reward/trace" in page
    for part in ("uPlot", "katex", "dagre", "font/woff2"):
        assert part in page


def test_the_python_interface_of_readme_is_in_the_wheel(run):
    done = run("-c", "from rollout import open_policy, pdr; open_policy('./nowhere')")
    assert done.returncode == 1
    assert "FileNotFoundError: model.path: the folder ./nowhere does not exist" in done.stderr
