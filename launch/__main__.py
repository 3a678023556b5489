"""``python -m launch``: runs workers and trainer as one job on this machine; a sweep with ``--multirun``."""

from configs.stopping import RESUME_VARIABLE, STOP, resume_command

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

import json
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from configs.compose import run, search_arguments
from configs.exit_status import ALARM, INTERRUPTED, PREEMPTED, REFUSED
from configs.run_folder import ALARMED, STOPPED, forget_end, refuse_used
from configs.schema import JobConfig
from launch.check import check_files, check_training
from launch.job import assignment, job_processes
from launch.split import choose_split
from launch.supervise import Supervisor
from rollout.build import build_operator, training_calls
from rollout.problems.loading import load_eval, load_train
from rollout.tokenizer import check_model_path
from rollout.workers.loopback import free_ports
from rollout.workspace import find_distiller
from train.origin import check_resumed

FAILED = float("-inf")
"""Objective that a failed job reports to the sweeper."""


def main(config: JobConfig, overrides: list[str]) -> float | None:
    """Runs one job. In a sweep, a failed job does not stop the others, and a finished job is skipped."""
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        sys.exit(_run(config, overrides))
    if any(item.startswith("output_dir=") for item in overrides):
        sys.exit("launch: each run of a sweep has its own folder: set hydra.sweep.dir instead of output_dir.")
    folder = Path(HydraConfig.get().runtime.output_dir)
    config.output_dir, config.resume = str(folder), "auto"
    own = [*overrides, assignment("output_dir", folder), "resume=auto"]
    status_file = folder / "status"
    _claim(folder, overrides)
    if status_file.is_file() and status_file.read_text() == "0":
        print(f"{folder}: already done")
        return _objective(config)
    status_file.write_text("running")
    status = _run(config, own)
    status_file.write_text(str(status))
    print(f"{folder}: {'done' if not status else f'failed with status {status}'}")
    if status in (PREEMPTED, INTERRUPTED):
        sys.exit(status)
    return _objective(config) if not status else FAILED


def refused(overrides: list[str]) -> float:
    """Records a job of a sweep whose options are invalid; the reason has been printed already."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    _claim(folder, overrides)
    (folder / "status").write_text(str(REFUSED))
    return FAILED


def _claim(folder: Path, overrides: list[str]) -> None:
    """Creates the folder of one job. Ends the sweep if the folder belongs to a job with other options."""
    written, said = folder / "job.txt", "\n".join(overrides) + "\n"
    if written.is_file() and written.read_text() != said:
        sys.exit(
            f"launch: {folder} holds a run with other options. Choose another hydra.sweep.dir, or remove it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(said)


def _run(config: JobConfig, overrides: list[str]) -> int:
    try:
        # The trainer refuses all of this, too, but only once workers are up.
        if config.resume == "none":
            refuse_used(Path(config.output_dir))
        training = check_training(overrides, build_operator, find_distiller)
        check_model_path(config.model.path)
        check_files(config.data, (load_train, load_eval))
        check_resumed(training)
        if (line := choose_split(config, overrides, training_calls)) is not None:
            print(line, flush=True)
        port = config.rollout.port or free_ports(config.rollout.num_workers)
        environment = {**os.environ, RESUME_VARIABLE: _resume_command()}
        planned = job_processes(config, overrides, environment, port=port, search=search_arguments())
    except (OSError, ValueError, RuntimeError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return REFUSED
    folder = Path(config.output_dir)
    forget_end(folder)
    try:
        with Supervisor() as supervisor, STOP.passing_on(supervisor.pass_on):
            status = supervisor.run(planned)
    except KeyboardInterrupt:
        print("launch: ended at once by Ctrl-C; what the step had not saved is lost", file=sys.stderr)
        return INTERRUPTED
    if (folder / ALARMED).exists() and not status:
        return ALARM
    # A rank is told to stop by its launcher, too, if another rank fails: then the launcher has a status.
    if (folder / STOPPED).exists() and (supervisor.told or not status):
        return PREEMPTED
    return PREEMPTED if supervisor.told and not supervisor.reached_last else status


def _resume_command() -> str:
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return resume_command("launch")  # a sweep runs again whatever is not done
    return resume_command("launch", "resume=auto")


def _objective(config: JobConfig) -> float:
    """Returns the held-out accuracy after training: of the run's operator, else of report.json's last row."""
    path = Path(config.output_dir) / "report.json"
    if not path.is_file():
        return FAILED
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    after = [row for row in rows if row["phase"] == "after"]
    own = [row for row in after if row["operator"] == config.operator.name]
    return float((own or after)[-1]["accuracy"]) if after else FAILED


if __name__ == "__main__":
    run("job", main, refused)
