"""Commands on their configs: flags of Hydra, refusals, exit statuses, what is written and shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO

NEEDED = ["model.path=x", "data.path=x"]


@pytest.mark.component
@pytest.mark.parametrize("mode", [[], ["--multirun"], ["--cfg", "job"]])
def test_a_command_writes_no_password_anywhere(tmp_path: Path, mode: list[str]):
    urls = "rollout.urls=['http://me:hunter2@b:1']"
    done = subprocess.run(
        [sys.executable, "-m", "launch", *mode, "experiment=demo", urls, f"hydra.sweep.dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 2
    assert "rollout.urls holds a URL with a user name or password" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def _rollout_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``configs.compose.run`` as a command has it, without what the command imports."""
    code = "from configs.compose import run; run('evaluation', lambda config, overrides: print(overrides))"
    return _command(folder, code, *arguments)


def _command(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.component
def test_cfg_job_prints_the_resolved_config_and_runs_nothing(tmp_path: Path):
    done = _rollout_command(tmp_path, "--cfg", "job", *NEEDED, "operator=sr")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["model"]["path"] == "x"
    assert shown["operator"]["schedule"] == [1, 1, 1]
    assert shown["rollout"]["max_retries"] == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [[], ["--cfg", "job"], ["--info", "config"]])
@pytest.mark.component
def test_an_unknown_key_ends_a_command_with_one_line(tmp_path: Path, flag: list[str]):
    done = _rollout_command(tmp_path, *flag, *NEEDED, "sampels=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["evaluation: 'sampels' is not an option. Did you mean 'samples'?"]


@pytest.mark.component
def test_a_key_added_with_a_plus_is_refused_when_asking_only(tmp_path: Path):
    done = _rollout_command(tmp_path, "--cfg", "job", *NEEDED, "+sampels=3")
    assert done.returncode == 2
    assert "Did you mean 'samples'?" in done.stderr


@pytest.mark.component
def test_help_needs_no_option(tmp_path: Path):
    done = _rollout_command(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert "operator: adaptive, best_of_n, genselect, majority, markovian_rsa, pacore, pdr" in done.stdout


@pytest.mark.component
def test_a_command_runs_with_the_checked_config_and_writes_no_folder(tmp_path: Path):
    done = _rollout_command(tmp_path, *NEEDED, "samples=3")
    assert done.returncode == 0, done.stderr
    assert "samples=3" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.component
def test_an_operator_in_a_folder_of_the_users_own_is_found_by_name(tmp_path: Path):
    folder = tmp_path / "mine" / "operator"
    folder.mkdir(parents=True)
    text = "defaults: [prompts: default, thinking: think, _self_]\nname: shortest\nkind: my_module:Shortest\n"
    (folder / "shortest.yaml").write_text(text + "schedule: [4]\n")
    code = (
        "from configs.compose import load_operator, run\n"
        "def main(config, overrides):\n"
        "    for name in ('shortest', 'sr'):\n"
        "        print(load_operator(name, config.operator).kind)\n"
        "run('evaluation', main)"
    )
    done = _command(tmp_path, code, "--config-dir", "mine", *NEEDED)
    assert done.stdout.split() == ["my_module:Shortest", "sr"], done.stderr
    chosen = _command(tmp_path, code, "--config-dir", "mine", *NEEDED, "operator=shortest")
    assert chosen.stdout.split() == ["my_module:Shortest", "sr"], chosen.stderr


@pytest.mark.component
@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["--info", "all"]])
def test_output_may_be_cut_by_the_reader(tmp_path: Path, flags: list[str]):
    """As by ``| head``: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "rollout", *flags],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    os.close(writing)
    os.close(reading)
    assert process.communicate(timeout=60)[1] == ""


@pytest.mark.component
def test_a_refused_config_is_recorded_for_the_launcher_of_a_rank(tmp_path: Path):
    code = (
        f"import os; os.environ['TORCHELASTIC_ERROR_FILE'] = {str(tmp_path / 'error.json')!r}\n"
        "from configs.compose import run; run('evaluation', lambda config, overrides: None)"
    )
    done = _command(tmp_path, code, "sed=1")
    assert done.returncode == 2
    assert json.loads((tmp_path / "error.json").read_text())["message"] == done.stderr.strip()
