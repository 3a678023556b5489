"""What a run leaves behind when it stops on request or by an alarm: a marker, a line, a status."""

import os
from pathlib import Path

from configs.exit_status import PREEMPTED
from configs.run_folder import ALARMED, STOPPED
from configs.stopping import RESUME_VARIABLE, resume_command


def leave_marker(output_dir: str, signal_name: str, step: int | None) -> str:
    """Writes ``stopped`` into a run's folder; returns the line that tells the user.

    Args:
        output_dir: Folder of the run.
        signal_name: Name of the signal, such as ``SIGINT``; empty if it was sent to another rank only.
        step: Number of finished steps, all of which are saved; None while the run is starting.
    """
    if step is None:
        where = "while it was starting, with nothing new to save"
    else:
        where = f"after step {step}, which is saved" if step else "before step 1"
    line = (
        f"train: stopped by {signal_name or 'a signal to another rank'} {where}; folder {output_dir}; "
        f"resume with: {resume_command('train', 'resume=auto')}"
    )
    return _marked(output_dir, STOPPED, line)


def leave_alarm(output_dir: str, reason: str) -> str:
    """Writes ``alarmed`` into the folder of a run that an alarm ends; returns the line for the user."""
    return _marked(output_dir, ALARMED, f"train: {reason}")


def _marked(output_dir: str, name: str, line: str) -> str:
    marker = Path(output_dir) / name
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(line + "\n", encoding="utf-8")
    return line


def status(alone: int = PREEMPTED) -> int:
    """Returns the exit status of a rank that stopped in good order: ``alone``, or 0.

    It is 0 if the starter reads the marker: for any other status ``accelerate launch`` prints a report of a
    failure, and ``srun --kill-on-bad-exit`` would end the ranks of other nodes while they still save.
    """
    return 0 if RESUME_VARIABLE in os.environ else alone
