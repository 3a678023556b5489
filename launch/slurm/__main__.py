"""``python -m launch.slurm experiment=... nodes=4 gpus=8``: writes OUTPUT_DIR/job.sbatch, for ``sbatch``."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.compose import run, search_arguments
from configs.schema import JobConfig
from launch.accelerate_file import accelerate_file
from launch.check import check_files, check_training
from launch.job import assignment, is_of_the_job, worker_options
from launch.plan.planning import make_plan
from rollout.build import build_operator, training_calls
from rollout.problems.loading import load_eval, load_train
from rollout.workspace import find_distiller

HEADER = re.compile(r"[A-Za-z0-9_.:/+=,-]*")
"""What the lines after #SBATCH may hold: Slurm reads them, not a shell, so that nothing can be quoted."""
SBATCH_ARGUMENT = re.compile(r"--([a-z][a-z-]*)=[A-Za-z0-9_.:/+=,@%&|*()\[\]!~-]+")
SET_BY_SCRIPT = {
    "job-name": "output_dir",
    "nodes": "nodes",
    "ntasks": "nodes",
    "ntasks-per-node": "nodes",
    "gpus": "gpus",
    "gpus-per-node": "gpus",
    "gpus-per-task": "gpus",
    "gres": "gpus",
    "exclusive": "nodes: whole nodes are used",
    "time": "launch.slurm_time",
    "signal": "launch.slurm_grace_seconds",
    "output": "output_dir",
    "open-mode": "output_dir",
    "requeue": "nothing: the script queues itself again",
    "no-requeue": "nothing: the script queues itself again",
    "export": "nothing: every step needs the script's environment",
    "array": "nothing: one script is one job",
    "wrap": "nothing: the script has its own commands",
}
"""Options of sbatch that the script decides, and what sets them instead."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
TEMPLATE = Path(__file__).parent / "job.sbatch"
WORKER_PORT = 8100
"""Port of the first worker on each node, unless ``rollout.port`` sets another."""


def main(config: JobConfig, overrides: list[str]) -> None:
    """Writes the script and prints how to submit it."""
    try:
        check_training(overrides, build_operator, find_distiller)
        if not config.launch.container_image:  # it may see files that this machine does not, and the reverse
            check_files(config.data, (load_train, load_eval))
        text = script(config, overrides, search_arguments())
    except (OSError, ValueError) as error:
        sys.exit(f"slurm: {error}")
    path = Path(config.output_dir).absolute() / "job.sbatch"
    (path.parent / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not create this folder
    path.write_text(text)
    print(f"Wrote {path}: sbatch {shlex.quote(str(path))}")
    for line in advice(config):
        print(line)


def advice(config: JobConfig) -> list[str]:
    """Returns remarks from the job's plan on its split and on the time for saving."""
    try:
        plan = make_plan(config, training_calls)
    except ValueError as error:
        return [f"No plan could be made: {error}"]
    mine = {split.workers // config.gpus: split for split in plan.splits}[config.launch.worker_nodes]
    if not mine.fits or mine.seconds is None:
        return ["According to the plan, it does not fit; see python -m launch.plan with the same options."]
    seconds, lines = mine.seconds.total, []
    if (best := plan.best) is not mine and best.seconds is not None:
        better = f"launch.worker_nodes={best.workers // config.gpus}"
        lines.append(f"The plan expects {seconds:.0f} s a step; with {better} {best.seconds.total:.0f} s.")
    if seconds >= config.launch.slurm_grace_seconds:
        lines.append(
            f"A step ({seconds:.0f} s) takes longer than launch.slurm_grace_seconds = "
            f"{config.launch.slurm_grace_seconds}: when asked to stop, the job would be killed before saving."
        )
    return lines


def script(config: JobConfig, overrides: Sequence[str], search: Sequence[str] = ()) -> str:
    """Returns the batch script of a job: some nodes run workers on all their GPUs, the others the trainer.

    Args:
        config: The config of the job.
        overrides: The overrides that it was made from.
        search: Arguments that add the user's own config groups (``configs.compose.search_arguments``).

    Raises:
        ValueError: If there are not enough nodes for both, workers would share the GPUs of the trainer or not
            use all of a node, or a value holds a character that the script cannot hold.
    """
    worker_nodes = config.launch.worker_nodes
    trainer_nodes = config.nodes - worker_nodes
    if trainer_nodes < 1 or not config.gpus:
        raise ValueError(
            f"nodes is {config.nodes}, launch.worker_nodes {worker_nodes} and gpus {config.gpus}: a node for "
            "the trainer and GPUs on each are needed, e.g. nodes=2 gpus=8 launch.worker_nodes=1."
        )
    if config.rollout.enable_sleep_mode:
        raise ValueError(
            "rollout.enable_sleep_mode is true, but here workers have nodes of their own: leave it false."
        )
    each = config.rollout.tensor_parallel_size
    if config.gpus % each:
        raise ValueError(
            f"rollout.tensor_parallel_size is {each}, but gpus is {config.gpus}: a node's GPUs must be "
            "shared out evenly among its workers."
        )
    output_dir = Path(config.output_dir).absolute()
    own = [item for item in overrides if not is_of_the_job(item) and not item.startswith("output_dir=")]
    values: dict[str, object] = {
        "NAME": re.sub(r"[^A-Za-z0-9_.+-]", "_", output_dir.name),
        "NODES": config.nodes,
        "GPUS": config.gpus,
        "WORKERS": config.gpus // each,
        "TIME": _in_header("launch.slurm_time", config.launch.slurm_time),
        "GRACE": config.launch.slurm_grace_seconds,
        # Slurm replaces %j and the like, and %% by %.
        "LOG": shlex.quote(f"{str(output_dir).replace('%', '%%')}/logs/slurm_%j.log"),
        "OUTPUT_DIR": shlex.quote(str(output_dir)),
        "ACCELERATE_FILE": shlex.quote(str(accelerate_file(config).path.absolute())),
        "MODEL": shlex.quote(config.model.path),
        "CONTAINER": shlex.join(_container(config)),
        "WORKER_NODES": worker_nodes,
        "TRAINER_NODES": trainer_nodes,
        "WORKER_PORT": config.rollout.port or WORKER_PORT,
        "TRAINER_PORT": config.launch.trainer_port,
        "WORKER_SECONDS": round(config.rollout.start_timeout_seconds),
        "WORKER_OPTIONS": shlex.join(worker_options(config)),
        "WORKER_OUTPUT": shlex.quote(assignment("output_dir", output_dir / "node_").removesuffix("'")),
        "TRAINER_OPTIONS": shlex.join([*search, *own, assignment("output_dir", output_dir)]),
        "RESUME_COMMAND": shlex.quote(f"sbatch {shlex.quote(str(output_dir / 'job.sbatch'))}"),
    }
    _refuse_control_characters([str(value) for value in values.values()])
    values["SBATCH"] = (
        "\n".join(sbatch_lines(config.launch.sbatch_args)) or "# launch.sbatch_args adds lines here."
    )
    values["PROLOGUE"] = prologue(config.launch.slurm_prologue)
    # In one pass, so that a value that reads like a parameter stays what it is.
    return re.sub(r"@([A-Z_]+)@", lambda found: str(values[found.group(1)]), TEMPLATE.read_text())


def sbatch_lines(arguments: Sequence[str]) -> list[str]:
    """Returns the header's lines for ``launch.sbatch_args``.

    Raises:
        ValueError: If one is not of the form ``--name=value``, holds a character that a line of #SBATCH
            cannot hold, or is an option that the script sets itself.
    """
    lines = []
    for argument in arguments:
        if (found := SBATCH_ARGUMENT.fullmatch(argument)) is None:
            raise ValueError(
                f"launch.sbatch_args holds {argument!r}; each must be of the form --name=value, without "
                'spaces, quotes and #, e.g. launch.sbatch_args=["--partition=gpu","--account=me"].'
            )
        # Slurm takes the beginning of a name for the name.
        if own := next((name for name in SET_BY_SCRIPT if name.startswith(found[1])), None):
            raise ValueError(
                f"launch.sbatch_args holds {argument!r}, but the script itself sets --{own}; it follows from "
                f"{SET_BY_SCRIPT[own]}."
            )
        lines.append(f"#SBATCH {argument}")
    return lines


def prologue(path: str) -> str:
    """Returns the text of ``launch.slurm_prologue``, for the beginning of the script; empty without one.

    Raises:
        ValueError: If the file cannot be read or holds lines of #SBATCH, which Slurm would ignore there.
    """
    if not path:
        return "# launch.slurm_prologue adds lines here."
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"launch.slurm_prologue is {path!r}, which cannot be read: {error}") from error
    if "#SBATCH" in text:
        raise ValueError(
            f"launch.slurm_prologue is {path!r}, which has a line of #SBATCH: Slurm ignores those after the "
            "first command. Put them into launch.sbatch_args."
        )
    # Scripts of modules and environments read variables that are not set.
    return f"set +u # from {shlex.quote(path)}\n{text.rstrip()}\nset -u"


def _container(config: JobConfig) -> list[str]:
    """Returns srun's options for a container (pyxis); every step runs in it, in the folder of submission."""
    launch = config.launch
    if not launch.container_image:
        return []
    options = [f"--container-image={launch.container_image}", f"--container-workdir={Path.cwd()}"]
    if launch.container_mounts:
        options.append(f"--container-mounts={','.join(launch.container_mounts)}")
    return options


def _refuse_control_characters(texts: Sequence[str]) -> None:
    for text in texts:
        if CONTROL.search(text):
            raise ValueError(
                f"{text!r} holds a control character, such as a line break, which a batch script cannot pass "
                "on. Remove it, or put the value into a config file of your own (--config-dir)."
            )


def _in_header(option: str, value: str) -> str:
    if not HEADER.fullmatch(value):
        raise ValueError(
            f"{option} is {value!r}; a line of #SBATCH may hold only letters, digits and _.:/+=,-"
        )
    return value


if __name__ == "__main__":
    run("job", main)
