"""A job: what its processes are, and what becomes of them when one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPO, config_with

from configs.compose import load
from configs.exit_status import ALARM, PREEMPTED
from configs.schema import JobConfig, RolesConfig
from launch.__main__ import _run as launched
from launch.check import check_files, check_training
from launch.job import assignment, job_processes, worker_options
from launch.supervise import JobProcess, Supervisor
from launch.table import SweepRun, draw, labels, read_runs, table
from launch.workers import serve as workers
from rollout.build import build_operator
from rollout.problems.loading import load_eval, load_train
from rollout.workers.asking import ranks
from rollout.workers.loopback import free_port
from rollout.workspace import find_distiller

BASE = ["model.path=x", "data.path=x"]


def _job(*overrides: str) -> JobConfig:
    return config_with("job", BASE, overrides)


def _processes(*overrides: str) -> dict[str, JobProcess]:
    made = job_processes(_job(*overrides), [*BASE, *overrides], {"HOME": "/home/me"}, port=8100)
    return {process.name: process for process in made}


def test_a_job_is_workers_on_fixed_ports_and_a_trainer_that_knows_them():
    made = _processes("rollout.num_workers=2", "rollout.max_model_len=3000", "algo.num_generations=4")
    assert list(made) == ["workers", "trainer"]
    servers, trainer = made["workers"], made["trainer"]
    assert {"rollout.num_workers=2", "rollout.max_model_len=3000", "rollout.port=8100"} <= set(
        servers.command
    )
    assert servers.ready_urls == tuple(f"http://127.0.0.1:{port}/health" for port in (8100, 8101))
    assert trainer.command[-2:] == [
        "rollout.urls=[http://127.0.0.1:8100,http://127.0.0.1:8101]",
        "rollout.num_workers=1",
    ]
    assert {"algo.num_generations=4", "model.path=x", "--config_file"} <= set(trainer.command)
    assert trainer.environment == servers.environment
    assert trainer.environment.keys() == {"HOME", "VLLM_API_KEY", "DS_ACCELERATOR"}


def test_workers_and_trainer_of_a_job_share_a_key_that_is_on_no_command_line():
    made, other = _processes(), _processes()
    key = made["workers"].environment["VLLM_API_KEY"]
    assert len(key) == 64 and key == made["trainer"].environment["VLLM_API_KEY"]
    assert key != other["workers"].environment["VLLM_API_KEY"]
    assert key not in repr([process.command for process in made.values()])
    assert "VLLM_API_KEY" not in _processes("rollout.urls=[http://a:1]")["trainer"].environment
    given = job_processes(_job(), BASE, {"VLLM_API_KEY": "mine"}, port=8100)
    assert {process.environment["VLLM_API_KEY"] for process in given} == {"mine"}


@pytest.mark.parametrize(
    "value",
    [
        "a b",
        "lr=1e-4,k=2",
        "it's",
        "back\\slash",
        "[1]",
        "x{y}",
        "ends in a backslash\\",
        "ends in two\\\\",
        "\\'",
        "${oc.env:HOME}/policy",
        "\\${oc.env:HOME}",
        "@TIME@",
    ],
)
def test_a_value_survives_hydra_whatever_it_holds(value: str):
    assert load("workers", ["model.path=x", assignment("output_dir", value)]).output_dir == value


def test_a_worker_option_survives_hydra_too():
    job = load("job", [*BASE, assignment("model.path", "a\\c'${x}")])
    again = load("workers", worker_options(job))
    assert again.model.path == "a\\c'${x}"


def test_options_of_vllm_reach_the_workers_as_they_were_given():
    given = [
        "rollout.vllm_args.speculative_config={method:ngram,tokens:[1,2]}",
        "rollout.vllm_args.a='x y'",
    ]
    job = load("job", [*BASE, *given, "rollout.enforce_eager=false"])
    again = load("workers", worker_options(job))
    assert again.rollout.vllm_args == {
        "speculative_config": {"method": "ngram", "tokens": [1, 2]},
        "a": "x y",
    }
    assert again.rollout.enforce_eager == "false"


def test_workers_of_several_gpus_get_the_first_and_the_trainer_the_rest():
    made = _processes("gpus=8", "rollout.num_workers=2", "rollout.tensor_parallel_size=2")
    assert made["workers"].environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert "rollout.tensor_parallel_size=2" in made["workers"].command
    assert made["trainer"].environment["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert "--num_processes 4" in " ".join(made["trainer"].command)
    said = r"num_workers 4 of 2 GPUs each \(rollout\.tensor_parallel_size\): trainer and workers need"
    with pytest.raises(ValueError, match=said):
        _processes("gpus=8", "rollout.num_workers=4", "rollout.tensor_parallel_size=2")
    _processes(
        "gpus=8", "rollout.num_workers=4", "rollout.tensor_parallel_size=2", "rollout.enable_sleep_mode=true"
    )


def test_workers_are_not_told_what_only_requests_and_the_trainer_use():
    drafts = ["collect.draft_source=reference", "rollout.num_draft_workers=1"]
    job = load("job", [*BASE, "rollout.roles.draft.temperature=1.2", "rollout.max_num_seqs=9", *drafts])
    workers = load("workers", worker_options(job)).rollout
    assert (workers.max_num_seqs, workers.num_draft_workers) == (9, 0)
    assert workers.roles == RolesConfig()


def test_the_trainer_is_not_told_what_concerns_the_job_alone():
    made = _processes("gpus=8", "plan.train_mfu=0.5", "hardware.memory_gib=40", "launch.accelerate=gpu_zero2")
    command = made["trainer"].command
    assert not [item for item in command if item.startswith(("gpus", "plan", "hardware", "launch."))]


def test_the_users_own_config_groups_are_passed_on_to_the_trainer():
    search = ["--config-dir", "/home/me/mine"]
    made = job_processes(_job(), BASE, {}, port=8100, search=search)
    assert [process.name for process in made if "--config-dir" in process.command] == ["trainer"]
    command = list(made[-1].command)
    assert command[command.index("train") + 1 :][:2] == search


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.eval_operators=[trace,mine]", "There is no operator 'mine'"),
        ("operator.distiller=mine:keep", "operator.distiller is 'mine:keep', which does not import"),
        ("operator.distillers=[mine:keep]", "operator.distillers is 'mine:keep', which does not import"),
        ("operator.kind=mine:Operator", "operator.kind is 'mine:Operator', which does not import"),
        ("operator.prompts.examples=none", "operator.prompts.examples: the file none does not exist"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_a_process_starts(override: str, said: str):
    with pytest.raises(ValueError, match=said):
        check_training([*BASE, "plan.train_mfu=0.5", override], build_operator, find_distiller)


def test_a_missing_file_or_column_is_told_before_a_process_starts_and_golds_are_not_judged(tmp_path: Path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "What is 1 + 1?", "answer": "no number"}\n')
    check_files(_job(f"data.path={file}").data, (load_train, load_eval))
    with pytest.raises(FileNotFoundError, match=r"trian\.jsonl does not exist.*mean .*/train\.jsonl"):
        check_files(_job(f"data.path={tmp_path}/trian.jsonl").data, (load_train, load_eval))
    with pytest.raises(ValueError, match="task"):
        check_files(_job(f"data.path={file}", "data.question_field=task").data, (load_train, load_eval))


@pytest.mark.parametrize(
    ("left", "status", "expected"),
    [
        ("alarmed", 0, ALARM),
        ("alarmed", 3, 3),
        ("stopped", 0, PREEMPTED),
        ("stopped", 3, 3),
        (None, 0, 0),
    ],
)
def test_a_job_whose_ranks_end_well_has_the_status_that_they_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str | None, status: int, expected: int
):
    """For any status but 0 ``accelerate launch`` would report a failure."""

    def run(self: Supervisor, processes: list[JobProcess]) -> int:
        assert not (tmp_path / "alarmed").exists()  # of a run before
        if left is not None:
            (tmp_path / left).touch()
        return status

    (tmp_path / "alarmed").touch()
    (tmp_path / "train.jsonl").write_text('{"question": "6 * 7?", "answer": "42"}\n')
    monkeypatch.setattr(Supervisor, "run", run)
    monkeypatch.setattr("launch.__main__.search_arguments", list)  # needs a running command
    monkeypatch.setattr("launch.__main__._resume_command", str)
    paths = {"model.path": tmp_path, "data.path": tmp_path / "train.jsonl", "output_dir": tmp_path}
    overrides = [f"{name}={path}" for name, path in paths.items()]
    assert launched(load("job", overrides), overrides) == expected


def test_workers_take_the_first_gpus_and_the_trainer_the_others():
    made = _processes("gpus=8", "rollout.num_workers=3")
    assert made["workers"].environment["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert made["trainer"].environment["CUDA_VISIBLE_DEVICES"] == "3,4,5,6,7"
    command = list(made["trainer"].command)
    assert command[command.index("--num_processes") + 1] == "5"
    with pytest.raises(ValueError, match=r"gpus is 2 and rollout\.num_workers 2: .* at least one GPU each"):
        _processes("gpus=2", "rollout.num_workers=2")


def test_workers_that_sleep_share_the_trainers_gpus():
    made = _processes("gpus=2", "rollout.num_workers=2", "rollout.enable_sleep_mode=true")
    assert made["workers"].environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert made["trainer"].environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "rollout.enable_sleep_mode=true" in made["workers"].command
    command = list(made["trainer"].command)
    assert command[command.index("--num_processes") + 1] == "2"
    with pytest.raises(
        ValueError, match=r"gpus is 2 and rollout\.num_workers 3: .* no more workers than GPUs"
    ):
        _processes("gpus=2", "rollout.num_workers=3", "rollout.enable_sleep_mode=true")


def test_workers_that_run_elsewhere_are_not_started_and_several_machines_are_refused():
    made = _processes("rollout.urls=[http://a:1]")
    assert list(made) == ["trainer"]
    assert made["trainer"].command[-2] == "rollout.urls=[http://a:1]"
    with pytest.raises(ValueError, match=r"nodes is 2: python -m launch runs a job on one machine"):
        _processes("nodes=2", "gpus=8")


def _script(name: str, code: str, log: Path, **options) -> JobProcess:
    command = [sys.executable, "-c", code]
    return JobProcess(name=name, command=command, log=log, environment=dict(os.environ), **options)


def _serving(log: Path, port: int) -> JobProcess:
    code = f"""
import http.server
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", {port}), Healthy).serve_forever()
"""
    return _script("workers", code, log, ready_urls=(f"http://127.0.0.1:{port}/health",), ready_seconds=20)


def _run(made: list[JobProcess]) -> tuple[int, str]:
    """The status and what was said; nothing is left running."""
    said: list[str] = []
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with Supervisor(say=said.append, show=said.append) as supervisor:
        status = supervisor.run(made)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    return status, "\n".join(line for line in said if line)


@pytest.mark.component
def test_the_trainer_starts_when_workers_are_up_and_its_end_is_that_of_the_job(tmp_path: Path):
    port = free_port()
    trainer = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/health')"
    made = [_serving(tmp_path / "w.log", port), _script("trainer", trainer, tmp_path / "t.log")]
    status, said = _run(made)
    assert status == 0
    assert [line for line in said.splitlines() if "started" not in line] == [
        "workers: up",
        "trainer: ended",
        "workers: ended",
    ]


@pytest.mark.component
def test_a_trainer_that_fails_ends_the_job_with_its_status_and_its_output_was_shown(tmp_path: Path):
    log = tmp_path / "t.log"
    log.write_text("of a run before\n")
    code = "print('bar\\rbad löss'); print('why: it is'); print('a report'); raise SystemExit(3)"
    made = [_serving(tmp_path / "w.log", free_port()), _script("trainer", code, log, says_why=("why: ",))]
    status, said = _run(made)
    assert status == 3
    assert said.index("why: it is", said.index("trainer: ended"))  # once more, at the end
    assert "bar\rbad löss\n" in said and "of a run before" not in said
    assert f"trainer: ended with status 3, log in {log}" in said


@pytest.mark.component
def test_workers_that_end_take_the_job_with_them(tmp_path: Path):
    port = free_port()
    dying = _serving(tmp_path / "w.log", port)
    code = dying.command[-1].replace("serve_forever()", "handle_request(); print('out of memory')")
    made = [
        _script("workers", code, tmp_path / "w.log", ready_urls=dying.ready_urls, ready_seconds=20),
        _script("trainer", "import time; time.sleep(60)", tmp_path / "t.log"),
    ]
    started = time.monotonic()
    status, said = _run(made)
    assert status == 1
    assert "workers: ended with status 0" in said and "  out of memory" in said
    assert time.monotonic() - started < 30


@pytest.mark.component
def test_workers_that_are_not_up_in_time_are_named(tmp_path: Path):
    sleeping = _script(
        "workers",
        "import time; print('loading'); time.sleep(60)",
        tmp_path / "w.log",
        ready_urls=(f"http://127.0.0.1:{free_port()}/health",),
        ready_seconds=0.5,
    )
    status, said = _run([sleeping, _script("trainer", "", tmp_path / "t.log")])
    assert status == 1
    assert "did not answer within 0.5 s" in said and "trainer: started" not in said


RANK = """
import signal, time
print('up', flush=True)
time.sleep(1)  # a rank is asked only once it listens: before, the signal would end it with another status
for number in (signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda *_: exit(75))
time.sleep(60)
"""
LAUNCHER = f"""
import os, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], env=dict(os.environ, RANK="0"))
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
status = rank.wait()
other.kill()
sys.exit(7 if status == 75 else 1)
"""


@pytest.mark.component
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_the_ranks_and_nothing_else(tmp_path: Path, number: signal.Signals):
    log = tmp_path / "t.log"
    made = [_script("trainer", LAUNCHER, log)]
    said: list[str] = []
    with Supervisor(say=said.append) as supervisor:
        before = signal.signal(number, supervisor.pass_on)
        # Told from a process of its own, once the rank is up.
        teller = f"""
import os, time
while "up" not in open({str(log)!r}).read():
    time.sleep(0.05)
os.kill({os.getpid()}, {int(number)})
"""
        log.touch()
        telling = subprocess.Popen([sys.executable, "-c", teller])
        try:
            assert supervisor.run(made) == 7
        finally:
            signal.signal(number, before)
            telling.wait(timeout=10)
    assert supervisor.told == [number]
    assert [line for line in said if line.startswith(f"{number.name}: the ranks save and stop after the")]


def test_a_second_ctrl_c_ends_the_job_and_a_repeated_sigterm_does_not():
    supervisor = Supervisor(say=lambda _: None)
    supervisor.pass_on(signal.SIGTERM)
    supervisor.pass_on(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt):
        supervisor.pass_on(signal.SIGINT)


@pytest.mark.component
def test_a_job_that_is_told_to_stop_before_it_has_a_trainer_ends(tmp_path: Path):
    port = free_port()
    waiting = _script(
        "workers",
        "import time; time.sleep(60)",
        tmp_path / "w.log",
        ready_urls=(f"http://127.0.0.1:{port}/health",),
        ready_seconds=30,
    )
    said: list[str] = []
    started = time.monotonic()
    with Supervisor(say=said.append) as supervisor:
        supervisor.pass_on(signal.SIGTERM)
        assert said == ["SIGTERM: the job ends; its trainer has not started, so there is nothing to save"]
        assert supervisor.run([waiting, _script("trainer", "", tmp_path / "t.log")]) == 1
    assert time.monotonic() - started < 25
    assert not [line for line in said if line.startswith("trainer")]


@pytest.mark.component
def test_workers_of_a_model_that_is_not_there_are_not_started(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.workers", "model.path=./nowhere", f"output_dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 1
    assert "workers: model.path: the folder ./nowhere does not exist." in done.stderr
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("value", [None, "", "mine"])
def test_workers_that_run_alone_have_a_key_that_their_user_can_pass_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str | None
):
    served: list[str] = []
    monkeypatch.setattr(workers, "load_tokenizer", lambda model: None)
    monkeypatch.setattr(workers, "_serve", lambda fleet, config: served.append(fleet.key))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_API_KEY", value)
    config = config_with("workers", ["model.path=x"], [f"output_dir={tmp_path}"])
    for _ in range(2):
        workers.main(config, [])
    assert served == [served[0]] * 2  # after a restart of the command a trainer still has the right key
    told, file = capsys.readouterr().out, tmp_path / "worker_key"
    if value:
        assert served[0] == value and not told and not file.exists()
    else:
        assert len(served[0]) == 64 and served[0] == file.read_text().strip()
        assert f'export VLLM_API_KEY="$(cat {file})"' in told and served[0] not in told


@pytest.mark.component
def test_a_folder_with_checkpoints_is_refused_before_a_process_starts(tmp_path: Path):
    (tmp_path / "checkpoints" / "step_000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_000004" / "manifest.json").touch()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "experiment=demo", "resume=none", f"output_dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 2
    assert f"launch: resume is none, but {tmp_path}/checkpoints/step_000004 exists" in done.stderr
    assert not (tmp_path / "logs").exists()


def test_no_process_has_no_ranks():
    assert ranks(2**22 + 1) == []


def _swept(folder: Path, name: str, status: str, accuracy: float | None) -> None:
    run = folder / name
    run.mkdir(parents=True)
    (run / "status").write_text(status)
    (run / "job.txt").write_text(f"experiment=demo\nalgo.learning_rate={name}\n")
    if accuracy is not None:
        row = {"operator": "pdr", "accuracy": accuracy, "ci_low": accuracy - 0.05, "ci_high": accuracy + 0.05}
        rows = [row | {"phase": "before", "accuracy": 0.1}, row | {"phase": "after"}]
        (run / "report.json").write_text(json.dumps({"rows": rows}))


def test_the_table_of_a_sweep_shows_what_differs_and_how_each_run_ended(tmp_path: Path):
    _swept(tmp_path, "1e-4", "0", 0.875)
    _swept(tmp_path, "1e-3", "3", None)
    _swept(tmp_path, "1e-2", "running", None)
    assert table(read_runs(tmp_path)).splitlines() == [
        "| algo.learning_rate | status | pdr % [95%] |",
        "| --- | --- | --- |",
        "| 1e-2 | running |  |",
        "| 1e-3 | failed (3) |  |",
        "| 1e-4 | done | 87.5 [82.5, 92.5] |",
    ]
    with pytest.raises(FileNotFoundError, match="holds no run of a sweep"):
        read_runs(tmp_path / "1e-4" / "nothing")


def test_the_plot_of_a_sweep_names_each_run_by_what_differs():
    def run(name: str, *overrides: str) -> SweepRun:
        return SweepRun(name=name, overrides=overrides, status="done", rows=())

    runs = [run("0", "algo=grpo", "seed=0"), run("1", "algo=grpo", "seed=1"), run("2", "algo=grpo")]
    assert labels(runs) == ["seed=0", "seed=1", "2"]


@pytest.mark.component
def test_the_plot_of_a_sweep_is_drawn(tmp_path: Path):
    for i in range(3):
        _swept(tmp_path, f"run{i}", "0", 0.5 + i / 10)
    draw(read_runs(tmp_path), tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.component
def test_a_sweep_goes_on_after_a_failure_and_knows_its_own_runs(tmp_path: Path):
    def sweep(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", "--multirun", "experiment=demo", *overrides]
        return subprocess.run(
            [*command, f"hydra.sweep.dir={tmp_path / 'sweep'}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )

    # Jobs that end before they start a process: no machine here has several nodes.
    done = sweep("gpus=8", "nodes=2,3", "algo.num_generations=8,1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("num_generations must be at least 2, got 1") == 2
    assert [run.status for run in read_runs(tmp_path / "sweep")] == ["failed (2)"] * 4
    (tmp_path / "sweep" / "0" / "status").write_text("0")
    again = sweep("gpus=8", "nodes=2,3", "algo.num_generations=8,1")
    assert f"{tmp_path}/sweep/0: already done" in again.stdout
    assert again.stdout.count("failed with status 2") == 1
    other = sweep("gpus=4", "nodes=2,3")
    assert "holds a run with other options" in other.stdout + other.stderr
    own = sweep("seed=1,2", "output_dir=mine")
    assert "set hydra.sweep.dir instead of output_dir" in own.stdout + own.stderr and own.returncode
    assert not (tmp_path / "mine").exists()


def _swept_by(plugin: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A sweep over jobs that end before they start a process: no machine here has several nodes."""
    command = [sys.executable, "-m", "launch", "--multirun", "experiment=demo", "gpus=8", "nodes=2"]
    return subprocess.run(
        [*command, plugin, *options, f"hydra.sweep.dir={folder}"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


@pytest.mark.component
def test_jobs_of_a_sweep_may_run_side_by_side(tmp_path: Path):
    done = _swept_by("hydra/launcher=joblib", tmp_path / "sweep", "seed=1,2,3", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert [run.status for run in read_runs(tmp_path / "sweep")] == ["failed (2)"] * 3


@pytest.mark.component
def test_a_search_maximises_the_accuracy_of_the_report_and_is_gone_on_with(tmp_path: Path):
    folder = tmp_path / "sweep"
    options = ("hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1")
    search = ("hydra/sweeper=optuna", folder, *options, "seed=choice(1,2,3,4,5)")
    done = _swept_by(*search)
    assert done.returncode == 0, done.stderr
    assert len(read_runs(folder)) == 3
    for number, accuracy in enumerate((0.25, 0.75, 0.5)):
        row = {"operator": "pdr", "phase": "after", "accuracy": accuracy}
        (folder / str(number) / "status").write_text("0")
        (folder / str(number) / "report.json").write_text(json.dumps({"rows": [row]}))
    again = _swept_by(*search)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") == 3
    assert "best_value: 0.75" in (folder / "optimization_results.yaml").read_text()
