"""Checks a job's training before any process is started: its options, operators and distillers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs.compose import load, load_operator
from configs.examples import read_examples
from configs.schema import DataConfig, OperatorConfig, TrainingConfig
from launch.job import is_of_the_job


def check_training(
    overrides: Sequence[str],
    build: Callable[[OperatorConfig], object],
    find_distiller: Callable[[str, str], object],
) -> TrainingConfig:
    """Composes the trainer's config with the config groups of the running command, and builds its operators.

    Args:
        overrides: The overrides of the job.
        build: Builds an operator from its options.
        find_distiller: Finds a distiller by its name; also receives the name of the option.

    Returns:
        The trainer's config, as yet without the addresses of its workers.

    Raises:
        ValueError: If the trainer would refuse an option, an operator, a distiller or the file of examples.
    """
    config: TrainingConfig = load("training", [item for item in overrides if not is_of_the_job(item)])
    read_examples(config.operator.prompts.examples)
    build(config.operator)
    for name in ("trace", *config.train.eval_operators):
        build(load_operator(name, config.operator))
    for name in config.operator.distillers:
        find_distiller(name, "operator.distillers")
    return config


Load = Callable[[DataConfig, Callable[[str, Mapping[str, Any]], None]], object]
"""Loads problems; the second argument checks a gold answer with the other columns of its row."""


def check_files(data: DataConfig, loads: Sequence[Load]) -> None:
    """Reads the files of a run's problems, so that a missing file or column is told before workers start.

    Gold answers are left to the trainer, which has the verifier. No-op for other sources.

    Raises:
        FileNotFoundError, ValueError: If the trainer would refuse a file for another reason than its golds.
    """
    if data.source == "file":
        for load_problems in loads:
            load_problems(data, _accept)


def _accept(gold: str, columns: Mapping[str, Any]) -> None:
    """Accepts every gold answer."""
