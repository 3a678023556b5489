"""Builds the command lines of a job: workers, then the trainer. ``launch.supervise`` runs them."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from configs.schema import JobConfig, RolloutConfig
from launch.accelerate_file import accelerate_file
from launch.supervise import JobProcess
from rollout.endpoints.keys import with_key
from rollout.endpoints.vllm_api import HEALTH

OF_THE_JOB = ("nodes", "gpus", "launch", "plan", "hardware")
"""Config groups of the job that the trainer does not have."""


def job_processes(
    config: JobConfig,
    overrides: Sequence[str],
    environment: Mapping[str, str],
    *,
    port: int,
    search: Sequence[str] = (),
) -> list[JobProcess]:
    """Returns the processes of a job on this machine, in starting order.

    Args:
        config: The config of the job.
        overrides: The overrides of the command line, unchanged.
        environment: Environment variables of the processes; a key of the workers is added if it has none.
        port: Port of the first worker; the others use the next ones. Ports are fixed so that a restarted
            worker is found again.
        search: Arguments that add the user's own config groups (``configs.compose.search_arguments``).

    Raises:
        ValueError: If the job needs more than one machine, or more GPUs than ``gpus``.
    """
    if config.nodes > 1:
        raise ValueError(
            f"nodes is {config.nodes}: python -m launch runs a job on one machine. Start workers on others "
            "with python -m launch.workers, and the trainer with accelerate launch and rollout.urls=[...]."
        )
    if config.rollout.urls:
        return [_trainer(config, [*search, *overrides], config.rollout.urls, environment)]
    environment = with_key(environment)
    workers = _workers(config, environment, port)
    urls = [url.removesuffix(HEALTH) for url in workers.ready_urls]
    return [workers, _trainer(config, [*search, *overrides], urls, environment)]


def _workers(config: JobConfig, environment: Mapping[str, str], port: int) -> JobProcess:
    rollout = config.rollout
    options = [
        *worker_options(config),
        assignment("output_dir", config.output_dir),
        f"rollout.port={port}",
        f"rollout.num_workers={rollout.num_workers}",
    ]
    return JobProcess(
        name="workers",
        command=[sys.executable, "-m", "launch.workers", *options],
        log=_log(config, "workers"),
        environment=dict(environment) | _devices(config, first=0, count=_worker_gpus(rollout)),
        ready_urls=tuple(f"http://127.0.0.1:{port + i}{HEALTH}" for i in range(rollout.num_workers)),
        ready_seconds=rollout.start_timeout_seconds,
    )


def _trainer(
    config: JobConfig, arguments: Sequence[str], urls: Sequence[str], environment: Mapping[str, str]
) -> JobProcess:
    file = accelerate_file(config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file.path)]
    # Remote workers use none of these GPUs, and workers that sleep release theirs during the update.
    has_all = config.rollout.urls or config.rollout.enable_sleep_mode
    first = 0 if has_all else _worker_gpus(config.rollout)
    if config.gpus:
        command += ["--num_processes", str(config.gpus - first)]
    own = [item for item in arguments if not is_of_the_job(item)]
    command += ["-m", "train", *own, f"rollout.urls=[{','.join(urls)}]", "rollout.num_workers=1"]
    return JobProcess(
        name="trainer",
        command=command,
        log=_log(config, "trainer"),
        environment=dict(environment) | _devices(config, first=first, count=config.gpus - first),
        says_why=("train: ", "training: "),
    )


def assignment(key: str, value: object) -> str:
    """Returns an override whose value is taken as it is: no comma, quote, backslash or ``${`` counts."""
    return f"{key}={_quoted(str(value))}"


def _quoted(text: str) -> str:
    # OmegaConf halves backslashes before ${, Hydra those before a quote; others are left alone by both.
    plain = re.sub(r"(\\*)\$\{", lambda run: run[1] * 2 + "\\${", text)
    return "'" + re.sub(r"(\\*)('|$)", lambda run: run[1] * 2 + ("\\'" if run[2] else ""), plain) + "'"


def _literal(value: object) -> str:
    """Returns a value as an override writes it."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def is_of_the_job(override: str) -> bool:
    """Returns True if the override sets an option that only the job has, not the trainer."""
    key = override.lstrip("+~").partition("=")[0]
    return key.split(".")[0].split("/")[0] in OF_THE_JOB


NOT_OF_WORKERS = (
    *("urls", "host", "port", "num_workers", "vllm_args"),
    *("roles", "draft_url", "draft_model", "num_draft_workers", "teacher_model_server_url"),
)
"""Options that the job sets itself, or that only requests and the trainer use."""


def worker_options(config: JobConfig) -> list[str]:
    """Returns the overrides of ``launch.workers`` for a run, without number and addresses of workers."""
    default, rollout = asdict(RolloutConfig()), asdict(config.rollout)
    differences = [
        f"rollout.{name}={_literal(value)}"
        for name, value in rollout.items()
        if name not in NOT_OF_WORKERS and value != default[name]
    ]
    # Keys of an open table are added one by one.
    differences += [f"++rollout.vllm_args.{name}={_literal(v)}" for name, v in rollout["vllm_args"].items()]
    return [
        assignment("model.path", config.model.path),
        f"model.trust_remote_code={json.dumps(config.model.trust_remote_code)}",
        *differences,
    ]


def _worker_gpus(rollout: RolloutConfig) -> int:
    return rollout.num_workers * rollout.tensor_parallel_size


def _devices(config: JobConfig, *, first: int, count: int) -> dict[str, str]:
    """Returns the variable that selects a process's devices; workers use the first (not tested on a GPU)."""
    if not config.gpus:
        return {"DS_ACCELERATOR": "cpu"}  # or DeepSpeed would tell every process that it finds no GPU
    if count < 1 or first + count > config.gpus:
        each = config.rollout.tensor_parallel_size
        several = f" of {each} GPUs each (rollout.tensor_parallel_size)" if each > 1 else ""
        raise ValueError(
            f"gpus is {config.gpus} and rollout.num_workers {config.rollout.num_workers}{several}: trainer "
            "and workers need at least one GPU each, or rollout.enable_sleep_mode=true with no more workers "
            "than GPUs."
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(first + i) for i in range(count))}


def _log(config: JobConfig, name: str) -> Path:
    return Path(config.output_dir) / "logs" / f"{name}.log"
