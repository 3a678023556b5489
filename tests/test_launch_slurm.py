"""The batch script, run under stubs of Slurm's commands: what starts where, and what happens at the end."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import config_with

from configs.compose import load
from launch.job import assignment
from launch.slurm.__main__ import advice, main, prologue, sbatch_lines, script

BASE = ["model.path=x", "data.path=x"]
LIMIT_SECONDS = 60
STUBS = {
    "scontrol": """
        if [[ $1 == show ]]; then printf '%s\\n' node-a node-b node-c; else echo "scontrol $*" >> "$CALLS"; fi
    """,
    # Runs the command once for each task, here.
    "srun": """
        tasks=1
        while [[ $1 == --* ]]; do
          [[ $1 == --ntasks=* ]] && tasks=${1#--ntasks=}
          [[ $1 == --kill-on-bad-exit=1 ]] && echo "kill: one rank ends all" >> "$CALLS"
          [[ $1 == --nodelist=* ]] && echo "on ${1#--nodelist=}" >> "$CALLS"
          shift
        done
        pids=()
        trap 'kill "${pids[@]}" 2>/dev/null' TERM
        for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
        status=0
        for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
        exit "$status"
    """,
    "curl": '[[ -e $UP ]] && echo "curl ${*: -1}" >> "$CALLS"',
    "python": """
        echo "python $SLURM_PROCID key=${#VLLM_API_KEY} $*" >> "$CALLS"
        [[ $2 == launch.fetch ]] && exit "$FETCH"
        if [[ $2 == launch.workers ]]; then
          [[ $STUB_WORKERS == fail ]] && exit 1
          touch "$UP"
          [[ $STUB_WORKERS == late ]] && sleep 3 && exit 0
          [[ $STUB_WORKERS == told ]] && kill -USR1 "$PPID_OF_SCRIPT"
          exec sleep 60
        fi
        [[ $TRAINER == runs ]] && exec sleep 60
        [[ $TRAINER == alarm ]] && touch "$OUTPUT/alarmed" && exit 0
        [[ $TRAINER == fails ]] && touch "$OUTPUT/stopped" && exit 4
        [[ $TRAINER == stops ]] || exit "$TRAINER"
        [[ $SLURM_PROCID == 0 ]] || exec sleep 1
        exec "$REAL_PYTHON" -c "$RANK_ON_A_NODE" "$3"
    """,
}


RANK_ON_A_NODE = """
import os, pathlib, signal, sys, time
os.kill(int(os.environ["PPID_OF_SCRIPT"]), signal.SIGUSR1)
until = time.monotonic() + 30
while time.monotonic() < until and not os.path.exists(sys.argv[1]):
    time.sleep(0.1)
(pathlib.Path(os.environ["OUTPUT"]) / "stopped").touch()
sys.exit(0 if "PDR_RESUME_COMMAND" in os.environ and os.path.exists(sys.argv[1]) else 75)
"""


def _script(output_dir: Path, *overrides: str) -> str:
    given = [*BASE, f"output_dir={output_dir}", "nodes=3", "gpus=2", *overrides]
    return script(config_with("job", BASE, [item for item in given if item not in BASE]), given)


def _submit(
    folder: Path,
    *overrides: str,
    workers: str = "run",
    trainer: str = "0",
    text: str = "",
    fetch: str = "0",
    output: Path | None = None,
):
    """Runs the script as Slurm would; gives its end and the stubs' calls."""
    binaries = folder / "bin"
    binaries.mkdir()
    for name, body in STUBS.items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (binaries / name).chmod(0o755)
    path = folder / "job.sbatch"
    output = output or folder / "an output"
    text = text or _script(output, *overrides)
    # Its own number, for a stub that sends it a signal.
    path.write_text(text.replace("set -euo pipefail", "set -euo pipefail\nexport PPID_OF_SCRIPT=$$", 1))
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node-[a-c]",
        "SLURM_JOB_ID": "42",
        "CALLS": str(folder / "calls"),
        "UP": str(folder / "up"),
        "FETCH": fetch,
        "OUTPUT": str(output),
        "REAL_PYTHON": sys.executable,
        "RANK_ON_A_NODE": RANK_ON_A_NODE,
        "STUB_WORKERS": workers,
        "TRAINER": trainer,
    }
    environment.pop("VLLM_API_KEY", None)
    done = subprocess.run(
        ["bash", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return done, (folder / "calls").read_text()


def test_every_parameter_is_filled_in(tmp_path: Path):
    text = _script(tmp_path, "launch.slurm_time=01:00:00", "launch.worker_nodes=2")
    assert not [word for word in text.split() if word.startswith("@") and word.strip("@\"'").isupper()]
    assert "#SBATCH --nodes=3\n" in text and "#SBATCH --time=01:00:00\n" in text
    assert "#SBATCH --signal=B:USR1@600\n" in text
    assert "WORKER_NODES=2\n" in text and "TRAINER_NODES=1\n" in text
    assert "multinode_zero3.yaml" in text


@pytest.mark.parametrize(
    ("content", "container", "said"),
    [
        (None, "", r"slurm: data file \S+/train\.jsonl does not exist; set data\.path"),
        (
            '{"q": "6 * 7?"}',
            "",
            r"slurm: \S+/train\.jsonl line 1: It has no field .* Set data\.question_field",
        ),
        ('{"question": "6 * 7?", "answer": "42"}', "", None),
        (None, "image.sqsh", None),
    ],
)
def test_the_data_is_read_before_the_script_is_written_unless_a_container_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, container: str, said: str | None
):
    monkeypatch.setattr("launch.slurm.__main__.search_arguments", list)  # needs a running command
    if content is not None:
        (tmp_path / "train.jsonl").write_text(content)
    overrides = [
        "model.path=x",
        f"data.path={tmp_path}/train.jsonl",
        f"output_dir={tmp_path}/run",
        "nodes=2",
        "gpus=1",
        f"launch.container_image={container}",
    ]
    config = load("job", overrides)
    with pytest.raises(SystemExit, match=said) if said else nullcontext():
        main(config, overrides)
    assert (tmp_path / "run" / "job.sbatch").exists() == (said is None)


@pytest.mark.parametrize("overrides", [["nodes=1"], ["gpus=0"], ["launch.worker_nodes=3"]])
def test_a_job_without_room_for_both_is_refused(tmp_path: Path, overrides: list[str]):
    with pytest.raises(ValueError, match="a node for the trainer and GPUs on each are needed"):
        _script(tmp_path, *overrides)


def test_workers_on_nodes_of_their_own_need_not_sleep(tmp_path: Path):
    with pytest.raises(ValueError, match="workers have nodes of their own: leave it false"):
        _script(tmp_path, "rollout.enable_sleep_mode=true")


def test_shellcheck_finds_nothing(tmp_path: Path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    path = tmp_path / "job.sbatch"
    path.write_text(_script(tmp_path / "an output"))
    done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_users_own_config_groups_are_in_the_script(tmp_path: Path):
    text = script(
        config_with("job", BASE, [f"output_dir={tmp_path}", "nodes=2", "gpus=1"]),
        [*BASE, "nodes=2", "gpus=1"],
        ["--config-dir", "/home/me/my groups"],
    )
    assert "TRAINER_OPTIONS=(--config-dir '/home/me/my groups' model.path=x" in text


@pytest.mark.parametrize("value", ["a\nrm -rf x", "a\tb", "a\x1b[0m"])
def test_control_characters_are_refused(tmp_path: Path, value: str):
    given = [*BASE, "nodes=2", "gpus=1"]
    with pytest.raises(ValueError, match="holds a control character"):
        script(load("job", given), [*given, assignment("operator.prompts.solve", value)])


def test_the_time_limit_cannot_add_options_of_slurm(tmp_path: Path):
    with pytest.raises(ValueError, match=r"launch\.slurm_time is '1 --mem=0'; a line of #SBATCH"):
        _script(tmp_path, "launch.slurm_time='1 --mem=0'")


@pytest.mark.component
@pytest.mark.parametrize(
    "name", ["it's", 'a "b"', "@TIME@", "ends in a backslash\\", "${oc.env:HOME}", "$HOME", "100%j"]
)
def test_whatever_the_folder_is_called_workers_and_trainer_get_it(tmp_path: Path, name: str):
    folder = tmp_path / name
    given = [*BASE, assignment("output_dir", folder), "nodes=3", "gpus=2"]
    text = script(load("job", given), given)
    done, calls = _submit(tmp_path, text=text, output=folder)
    assert done.returncode == 0, done.stderr
    (workers,) = [line for line in calls.splitlines() if "launch.workers" in line]
    (given_to_workers,) = re.findall(r"output_dir='.*?node_0'", workers)
    assert load("workers", ["model.path=x", given_to_workers]).output_dir == f"{folder}/node_0"
    trainer = next(line for line in calls.splitlines() if "-m train" in line)
    (given_to_trainer,) = re.findall(r"output_dir='.*' (?=resume=auto)", trainer)
    assert load("training", [*BASE, given_to_trainer.strip()]).output_dir == str(folder)
    assert (folder / "logs").is_dir()


@pytest.mark.component
def test_workers_start_on_their_nodes_then_one_launcher_on_each_of_the_others(tmp_path: Path):
    done, calls = _submit(tmp_path, "algo.num_generations=4", "plan.train_mfu=0.5")
    assert done.returncode == 0, done.stderr
    lines = calls.splitlines()
    # The model of the hub: by one node, then by the others; workers; the trainer.
    one, others = "on node-a", "on node-b,node-c"
    assert [line for line in lines if line.startswith("on")] == [one, others, one, others]
    assert [line.split()[-1] for line in lines if "launch.fetch" in line] == ["x"] * 3
    workers = next(line for line in lines if "launch.workers" in line)
    assert "rollout.host=0.0.0.0 rollout.port=8100 rollout.num_workers=2" in workers
    assert f"output_dir='{tmp_path}/an output/node_0'" in workers
    asked = [line for line in lines if line.startswith("curl")]
    assert asked == [f"curl http://node-a:{port}/health" for port in (8100, 8101)]
    trainers = sorted(line for line in lines if "accelerate" in line)
    assert all("-m launch.slurm.node" in line and "an output/stop_requested" in line for line in trainers)
    assert [line.split()[1] for line in trainers] == ["0", "1"]
    for rank, line in enumerate(trainers):
        assert f"--machine_rank {rank} --config_file" in line
        assert "--num_machines 2 --num_processes 4" in line
        assert "--main_process_ip node-b --main_process_port 29500 -m train" in line
        assert "algo.num_generations=4" in line and "plan." not in line
        assert line.endswith(
            "resume=auto rollout.urls=[http://node-a:8100,http://node-a:8101] rollout.num_workers=1"
        )
    # One key for all, which nobody had to choose.
    assert all("key=32" in line for line in lines if line.startswith("python"))


@pytest.mark.component
def test_the_status_is_the_trainers_and_the_workers_are_ended(tmp_path: Path):
    done, calls = _submit(tmp_path, trainer="3")
    assert done.returncode == 3
    assert "requeue" not in calls


@pytest.mark.component
def test_workers_that_end_at_start_end_the_job_with_where_to_look(tmp_path: Path):
    done, calls = _submit(tmp_path, workers="fail")
    assert done.returncode == 1
    assert "The workers ended; see" in done.stderr
    assert "accelerate" not in calls


def test_options_of_sbatch_a_prologue_and_a_container_are_in_the_script(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tmp_path / "my prologue"
    before.write_text("module load cuda\nexport HF_HOME=/scratch/hub\n")
    given = [
        'launch.sbatch_args=["--partition=gpu","--constraint=[a100&ib]","--mail-user=me@site.org"]',
        assignment("launch.slurm_prologue", before),
        "launch.container_image=site/pdr:1",
        'launch.container_mounts=["/scratch:/scratch","/home/me:/home/me"]',
    ]
    lines = script(load("job", [*BASE, "nodes=2", "gpus=1", *given]), given).splitlines()
    header = lines[: lines.index("set -euo pipefail")]
    for line in ("--partition=gpu", "--constraint=[a100&ib]", "--mail-user=me@site.org"):
        assert f"#SBATCH {line}" in header
    begin = lines.index("module load cuda")
    assert lines[begin - 1].startswith("set +u") and lines[begin + 1] == "export HF_HOME=/scratch/hub"
    assert lines[begin + 2] == "set -u" and begin < lines.index("# Parameters")
    (container,) = [line for line in lines if line.startswith("CONTAINER=(")]
    assert "--container-image=site/pdr:1" in container
    assert f"--container-workdir={tmp_path}" in container
    assert "--container-mounts=/scratch:/scratch,/home/me:/home/me" in container


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("-p gpu", "must be of the form --name=value"),
        ("--partition gpu", "must be of the form --name=value"),
        ("--comment=a#b", "must be of the form --name=value"),
        ("--nodes=9", "the script itself sets --nodes; it follows from nodes"),
        ("--tim=1", r"the script itself sets --time; it follows from launch\.slurm_time"),
        ("--gpus=4", "the script itself sets --gpus"),
        ("--export=NONE", "every step needs the script's environment"),
    ],
)
def test_an_option_of_sbatch_that_cannot_hold_is_refused_by_name(argument: str, said: str):
    with pytest.raises(ValueError, match=said):
        sbatch_lines([argument])


@pytest.mark.parametrize(
    ("content", "said"), [(None, "which cannot be read"), ("#SBATCH --mem=0\n", "Slurm ignores those")]
)
def test_a_prologue_that_would_have_no_effect_is_refused(content: str | None, said: str, tmp_path: Path):
    path = tmp_path / "prologue.sh"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=said):
        prologue(str(path))


@pytest.mark.parametrize("options", [['["/a:/b"]', ""], ['["/a"]', "image"]])
def test_mounts_need_an_image_and_two_sides(options: list[str]):
    with pytest.raises(ValueError, match=r"launch\.container_mounts"):
        load("job", [*BASE, f"launch.container_mounts={options[0]}", f"launch.container_image={options[1]}"])


@pytest.mark.component
def test_a_model_that_cannot_be_fetched_ends_the_job_before_any_worker(tmp_path: Path):
    done, calls = _submit(tmp_path, fetch="1")
    assert done.returncode == 1
    assert "launch.workers" not in calls and "accelerate" not in calls


@pytest.mark.component
def test_every_step_gets_all_cpus_of_its_node_unbound(tmp_path: Path):
    text = _script(tmp_path / "an output")
    assert text.count("srun --cpu-bind=none --cpus-per-task=") == 1
    assert text.count("srun ") == 1  # every step goes through it
    assert "pkill" not in text


@pytest.mark.component
def test_a_job_that_is_told_to_stop_tells_the_ranks_and_queues_again(tmp_path: Path):
    done, calls = _submit(tmp_path, trainer="stops")
    assert done.returncode == 0, done.stderr
    assert "Asked to stop" in done.stdout
    assert calls.rstrip().endswith("scontrol requeue 42")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("launch.worker_nodes=3 launch.slurm_grace_seconds=1200", []),
        (
            "launch.worker_nodes=1",
            ["with launch.worker_nodes=3", "longer than launch.slurm_grace_seconds = 600"],
        ),
        ("hardware.memory_gib=20", ["it does not fit"]),
        ("model.path=nowhere", ["No plan could be made: model.path is 'nowhere'"]),
    ],
)
def test_advice_names_a_better_split_and_a_step_that_outlasts_the_grace(overrides: str, said: list[str]):
    options = ["experiment=qwen3_8b_pdr", "data.path=x", "nodes=4", "gpus=8", *overrides.split()]
    lines = advice(config_with("job", options, []))
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


@pytest.mark.component
def test_a_job_that_is_told_to_stop_before_it_trains_queues_again(tmp_path: Path):
    done, calls = _submit(tmp_path, workers="told", trainer="runs")
    assert done.returncode == 0, done.stderr
    assert calls.rstrip().endswith("scontrol requeue 42")


@pytest.mark.component
def test_workers_that_end_while_training_runs_end_the_job(tmp_path: Path):
    done, calls = _submit(tmp_path, workers="late", trainer="runs")
    assert done.returncode == 1
    assert "The workers ended while training ran; see" in done.stderr
    assert "requeue" not in calls


@pytest.mark.component
def test_a_rank_that_fails_ends_the_others_and_a_marker_it_left_does_not_queue_again(tmp_path: Path):
    done, calls = _submit(tmp_path, trainer="fails")
    assert done.returncode == 4
    assert calls.count("kill: one rank ends all") == 1  # the trainer's srun, not that of the workers
    assert "requeue" not in calls


@pytest.mark.component
def test_a_job_that_an_alarm_ends_fails_and_does_not_queue_again(tmp_path: Path):
    (tmp_path / "an output").mkdir()
    (tmp_path / "an output" / "stopped").touch()  # of a job before
    done, calls = _submit(tmp_path, trainer="alarm")
    assert done.returncode == 1
    assert "requeue" not in calls
    # The mark of an alarm does not outlive the job after it.
    (tmp_path / "again").mkdir()
    done, _ = _submit(tmp_path / "again", output=tmp_path / "an output")
    assert done.returncode == 0
