"""``python -m train.study``: training runs that build on one another, each evaluated, and one table of all.

Every stage is a command that can also be run by hand; it is skipped if its output exists. A study starts
processes as ``launch`` does, but belongs to ``train``: its table reads the journals of evaluations with
``rollout.evaluation``, which ``launch`` does not import.
"""

from configs.stopping import STOP

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from configs.compose import run
from configs.exit_status import PREEMPTED
from configs.schema import ArmConfig, StudyConfig
from configs.stopping import resume_command
from rollout.workers.asking import ask, ranks
from rollout.workers.log_excerpt import log_excerpt
from rollout.workers.process_guard import commands, end_guarded, start_guarded
from train.export import CARD_FILE
from train.study.table import COLD_START, Trained, study_table

LOOK_SECONDS = 0.2
"""Interval between two looks at the running stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A command, and the path that exists once it has succeeded."""

    name: str
    command: list[str]
    made: Path
    log: Path
    record: Path
    """Holds the arguments of the stage's last start."""
    arguments: tuple[str, ...]

    def refuse_other(self) -> None:
        """Ends the program if the stage's output was made with other arguments than it would be now."""
        was = self.record.read_text(encoding="utf-8").splitlines() if self.record.is_file() else None
        if was == list(self.arguments):
            return
        how = "by an earlier version, which does not tell how"
        if was is not None:
            gone, new = (sorted(set(a) - set(b)) for a, b in ((was, self.arguments), (self.arguments, was)))
            how = f"with {', '.join(gone) or 'nothing else'}; now it has {', '.join(new) or 'nothing else'}"
        sys.exit(
            f"study: '{self.name}' was made {how}. Restore the options, choose a new output_dir, or delete "
            f"{self.made.parent} to make it again."
        )


def main(config: StudyConfig, overrides: list[str]) -> None:
    """Runs the stages whose output is missing, in order, and writes ``table.md``."""
    output_dir = Path(config.output_dir)
    for stage in stages(config):
        if stage.made.exists():
            stage.refuse_other()
            print(f"== {stage.name}: done already")
            continue
        print(f"== {stage.name}", flush=True)
        # First, so that whatever is made has its record.
        stage.record.parent.mkdir(parents=True, exist_ok=True)
        stage.record.write_text("\n".join(stage.arguments) + "\n", encoding="utf-8")
        _run(stage, config.stage_timeout_seconds)
    try:
        text = study_table(config, trained(config))
    except ValueError as error:
        sys.exit(f"study: {error}")
    (output_dir / "table.md").write_text(text)
    print(text)
    print(f"Written to {output_dir / 'table.md'}", file=sys.stderr)


def stages(config: StudyConfig) -> Iterator[Stage]:
    """Yields all stages of a study, in order."""
    start = cold_start_folder(config)
    yield _stage(
        "cold start",
        start,
        start / "policy" / "config.json",
        ["train.coldstart", *config.training, f"model.path={start / 'policy'}"],
    )
    yield _evaluation(config, "evaluation of the cold start", start, config.seeds[0])
    for seed in config.seeds:
        for arm in config.arms:
            yield from _arm_stages(config, arm, seed)


def trained(config: StudyConfig) -> Iterator[Trained]:
    """Yields every evaluated policy of a finished study."""
    yield Trained(arm=COLD_START, folder=cold_start_folder(config) / "evaluation")
    for arm in config.arms:
        for seed in config.seeds:
            yield Trained(arm=arm.name, folder=arm_folder(config, arm.name, seed) / "evaluation")


def cold_start_folder(config: StudyConfig) -> Path:
    return Path(config.output_dir) / "cold_start"


def arm_folder(config: StudyConfig, arm: str, seed: int) -> Path:
    return Path(config.output_dir) / f"seed_{seed}" / arm.replace(" ", "_")


def _arm_stages(config: StudyConfig, arm: ArmConfig, seed: int) -> Iterator[Stage]:
    folder = arm_folder(config, arm.name, seed)
    start = arm_folder(config, arm.start, seed) if arm.start else cold_start_folder(config)
    name = f"{arm.name}, seed {seed}"
    accelerate = Path(str(files("launch"))) / "accelerate" / f"{config.accelerate}.yaml"
    training = ["accelerate.commands.launch", "--config_file", str(accelerate), "-m", "train"]
    own = [f"model.path={start / 'policy'}", f"output_dir={folder}", f"seed={seed}", "resume=auto"]
    # The card is the last file of an export. A finished training without one runs again: with resume=auto it
    # ends immediately.
    exported = folder / "policy" / CARD_FILE
    yield _stage(name, folder, exported, [*training, *config.training, *arm.overrides, *own])
    yield _stage(
        f"{name}: export",
        folder,
        exported,
        ["train.export", str(folder), str(folder / "policy")],
    )
    yield _evaluation(config, f"{name}: evaluation", folder, seed)


def _evaluation(config: StudyConfig, name: str, folder: Path, seed: int) -> Stage:
    own = [f"model.path={folder / 'policy'}", f"output_dir={folder / 'evaluation'}", f"seed={seed}"]
    return _stage(name, folder, folder / "evaluation" / "report.json", ["rollout", *config.evaluation, *own])


def _stage(name: str, folder: Path, made: Path, module: Sequence[str]) -> Stage:
    kind = module[0].rpartition(".")[2]
    return Stage(
        name=name,
        command=[sys.executable, "-m", *module],
        made=made,
        log=folder / "logs" / f"{made.stem}.log",
        record=folder / "logs" / f"{kind}.arguments",
        # The accelerate file is one of the installed project, wherever that is.
        arguments=tuple(each for each in module if not each.endswith(".yaml")),
    )


def _run(stage: Stage, limit_seconds: float) -> None:
    """Runs a stage to completion, with its output in its log. Its processes end with this process.

    Raises:
        SystemExit: If the stage fails or exceeds ``limit_seconds``; the message has its command and the last
            lines of its log.
    """
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    with stage.log.open("ab") as log:
        begin = log.tell()
        process = start_guarded(stage.command, log)
    try:
        status = _wait(process, limit_seconds)
        ended = f"ended with status {status}"
    except subprocess.TimeoutExpired:
        status, ended = 1, f"took longer than stage_timeout_seconds = {limit_seconds:g}"
    finally:
        end_guarded(process)
    if STOP.name:
        print(
            f"study: stopped by {STOP.name} in '{stage.name}'; resume with: {resume_command('train.study')}"
        )
        sys.exit(PREEMPTED)
    if status:
        sys.exit(
            f"study: '{stage.name}' {ended}. {log_excerpt(stage.log, begin)}\n"
            f"The command: {shlex.join(stage.command)}\nStart the study again to resume with this stage."
        )


def _wait(process: "subprocess.Popen[bytes]", limit_seconds: float) -> int:
    """Returns the status of a stage once it has ended, which a request to stop asks it to do.

    A stage that does not listen to such requests, an export, runs to its end.

    Raises:
        subprocess.TimeoutExpired: If it takes longer than ``limit_seconds``.
    """
    deadline = time.monotonic() + limit_seconds
    is_asked = False
    while (status := process.poll()) is None:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, limit_seconds)
        if STOP.name and not is_asked:
            # The ranks of a training; of another stage the command itself.
            is_asked = ask(ranks(process.pid) or commands(process.pid), signal.SIGUSR1)
        time.sleep(LOOK_SECONDS)
    return status


if __name__ == "__main__":
    run("study", main)
