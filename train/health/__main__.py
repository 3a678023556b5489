"""``python -m train.health DIR``: the alarms of a recorded run, by step and name.

Exit status: 0 without alarms, 1 with alarms or rollbacks, 2 if there is nothing to read.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.exit_status import REFUSED
from configs.schema.train import ALARMS
from train.health.rollbacks import read_rollbacks
from train.health.rules import alarms_of
from train.metrics_file import METRICS_FILE, read_metrics

UNHEALTHY = 1
"""Exit status: the run raised an alarm."""


def report(path: Path, ignored: Sequence[str] = ()) -> list[str]:
    """Returns one line per rollback and alarm of a run's folder, or per alarm of a file of metrics.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has no finished step, or a line that is not a step's metrics.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; give a run's output_dir, or a file such as metrics.jsonl."
        )
    try:
        history = read_metrics(file)
    except ValueError as error:
        raise ValueError(f"{file} is not a file of metrics, one JSON object per line: {error}") from error
    if not all(isinstance(line, dict) and "step" in line for line in history):
        raise ValueError(f"{file} is not a file of metrics: a line has no 'step'.")
    if not history:
        raise ValueError(f"{file} has no finished step yet.")
    rollbacks = read_rollbacks(path) if path.is_dir() else []
    return [*map(str, rollbacks), *map(str, alarms_of(history, ignored))]


def main() -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.health", description=__doc__)
    parser.add_argument("path", type=Path, help="a run's output_dir, or a metrics.jsonl")
    parser.add_argument(
        "--ignore", nargs="+", default=[], choices=ALARMS, metavar="NAME", help="alarms that do not apply"
    )
    options = parser.parse_args()
    try:
        lines = report(options.path, options.ignore)
        print("\n".join(lines) or "No alarms.", flush=True)
    except (FileNotFoundError, ValueError) as error:
        print(f"health: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # the reader of the pipe, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNHEALTHY if lines else 0


if __name__ == "__main__":
    sys.exit(main())
