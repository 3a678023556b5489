"""The alarms of a whole run in a few lines, for ``report.md`` and the end of a run."""

from collections.abc import Collection
from pathlib import Path

from train.health.rollbacks import read_rollbacks
from train.health.rules import Alarm, alarms_of
from train.metrics_file import METRICS_FILE, read_metrics


def alarm_summary(output_dir: Path, ignored: Collection[str] = ()) -> list[str]:
    """Returns one line per rollback, and per alarm and metric that was raised; empty for a healthy run."""
    grouped: dict[tuple[str, str], list[Alarm]] = {}
    for alarm in alarms_of(read_metrics(output_dir / METRICS_FILE), ignored):
        grouped.setdefault((alarm.rule.name, alarm.metric), []).append(alarm)
    lines = [str(rollback) for rollback in read_rollbacks(output_dir)]
    for alarms in grouped.values():
        count = "1 step" if len(alarms) == 1 else f"{len(alarms)} steps, first"
        lines.append(f"{count} {alarms[0]}" if len(alarms) > 1 else str(alarms[0]))
    return lines
