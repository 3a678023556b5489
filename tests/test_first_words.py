"""The first words of a command: ``--help`` and the refusal of an option come before heavy libraries load."""

import subprocess
import sys

import pytest
from conftest import REPO

HEAVY = {"torch", "transformers", "vllm", "deepspeed", "datasets", "trl", "accelerate"}
COMMANDS = (
    "launch",
    "launch.plan",
    "launch.slurm",
    "launch.workers",
    "rollout",
    "rollout.problems",
    "train",
    "train.coldstart",
    "train.study",
)
WITH_ARGPARSE = ("train.export", "train.explain", "train.health", "train.report_page", "rewards")


def _run(command: str, option: str) -> tuple[int, set[str], str]:
    """Returns the status of a command, the heavy libraries that it has loaded, and its errors."""
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = [{option!r}]\n"
        "status = 0\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    status = end.code or 0\n"
        f"print('LOADED', status, *sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120, check=True
    )
    status, *loaded = done.stdout.splitlines()[-1].split()[1:]
    return int(status), set(loaded), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_option_is_refused_before_a_heavy_library_loads(command: str):
    status, loaded, said = _run(command, "sed=1")
    assert (status, loaded) == (2, set())
    assert "'sed' is not an option" in said


@pytest.mark.parametrize("command", WITH_ARGPARSE)
def test_a_bad_argument_is_refused_before_a_heavy_library_loads(command: str):
    status, loaded, _ = _run(command, "--no-such-flag")
    assert (status, loaded) == (2, set())


def test_help_comes_before_a_heavy_library_loads():
    assert _run("train", "--help")[:2] == (0, set())
