"""What a run does about its alarms (``train.on_alarm``): notes them, stops, or rolls back. On rank 0 only."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.schema import TrainingConfig
from train.checkpoint_files import finished_checkpoints, read_state
from train.collaborators import Collector
from train.health.rollbacks import (
    RATE_FACTOR,
    Rollback,
    last_healthy,
    read_rollbacks,
    record_rollback,
)
from train.health.rules import Alarm, Monitor, alarm_metrics
from train.manifest import damage, remove
from train.metrics_file import METRICS_FILE, read_metrics
from train.report import Reporter


class UnhealthyRun(RuntimeError):
    """The run stopped because of an alarm; the message names the alarms and how to resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What every rank does after a step: with neither field set, it continues."""

    stop: str = ""
    """If not empty, the run stops with this message."""
    checkpoint: Path | None = None
    """If not None, the run resumes from this checkpoint."""


class AlarmWatch:
    """Applies the alarms to each step and decides on the response."""

    def __init__(self, config: TrainingConfig, collector: Collector, reporter: Reporter) -> None:
        """Raises no alarm before ``start``."""
        self._config = config
        self._folder = Path(config.output_dir)
        self._collector = collector
        self._reporter = reporter
        self._monitor = Monitor()
        self._alarms: list[Alarm] = []
        """Alarms of all steps of the current ``metrics.jsonl``."""

    def start(self) -> None:
        """Reads the steps that were made so far, after ``Reporter.start`` has dropped those given up."""
        self._monitor = Monitor(self._config.train.ignored_alarms)
        history = read_metrics(self._folder / METRICS_FILE)
        self._alarms = [alarm for line in history for alarm in self._monitor.add(line)]

    def observe(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of a step with those of its alarms; prints alarms that are new."""
        before = {(alarm.rule.name, alarm.metric) for alarm in self._at(step - 1)}
        found = self._monitor.add({**metrics, "step": step})
        self._alarms += found
        for alarm in found:
            if (alarm.rule.name, alarm.metric) not in before:
                self._reporter.note(f"Alarm: {alarm}. Why: {alarm.rule.reason}.")
        return {**metrics, **alarm_metrics(found)}

    def respond(self, step: int, policy_version: int) -> Response:
        """Returns the response to the alarms of ``step``; prepares the folder for a rollback.

        ``policy_version`` is the version that workers serve.
        """
        train = self._config.train
        found = self._at(step)
        if train.on_alarm == "warn" or not found:
            return Response()
        said = "; ".join(map(str, found))
        if train.on_alarm == "stop":
            return Response(stop=self._stop_message(said, "train.on_alarm is stop"))
        done = len(read_rollbacks(self._folder))
        if done >= train.max_rollbacks:
            return Response(stop=self._stop_message(said, f"all {done} rollbacks were made"))
        checkpoint = self._checkpoint_before(step)
        if checkpoint is None:
            return Response(stop=self._stop_message(said, "there is no healthy checkpoint to roll back to"))
        rollback = Rollback(
            from_step=step,
            to_step=read_state(checkpoint).step,
            policy_version=policy_version + 1,
            alarms=tuple(map(str, found)),
            metrics=f"metrics_rollback_{done + 1}.jsonl",
        )
        self._prepare(rollback, checkpoint)
        self._reporter.note(
            f"Rollback {done + 1} of {train.max_rollbacks}: {rollback}. The learning rates are multiplied by "
            f"{RATE_FACTOR:g}; {rollback.metrics} has the metrics of the steps given up."
        )
        return Response(checkpoint=checkpoint)

    def _at(self, step: int) -> list[Alarm]:
        return [alarm for alarm in self._alarms if alarm.step == step]

    def _stop_message(self, said: str, why: str) -> str:
        return (
            f"stopped by an alarm ({why}): {said}. No checkpoint was written for this step. Resume with "
            "resume=auto and train.on_alarm=warn to continue all the same, or name alarms that do not apply "
            "in train.ignored_alarms; to learn more slowly, start a new run with a lower algo.learning_rate "
            f"and model.path={self._folder}/checkpoints/step_N/policy. docs/metrics.md describes each alarm."
        )

    def _checkpoint_before(self, step: int) -> Path | None:
        sound = {
            read_state(path).step: path
            for path in finished_checkpoints(self._folder / "checkpoints")
            if damage(path) is None
        }
        chosen = last_healthy(
            list(sound),
            {alarm.step for alarm in self._alarms},
            step=step,
            max_staleness=self._config.collect.max_staleness,
        )
        return None if chosen is None else sound[chosen]

    def _prepare(self, rollback: Rollback, checkpoint: Path) -> None:
        """Removes what the steps after ``checkpoint`` left, and records the rollback last.

        If it is interrupted, the run resumes from ``checkpoint`` as after any kill and meets the alarm again.
        """
        for path in reversed(finished_checkpoints(checkpoint.parent)):
            if read_state(path).step > rollback.to_step:
                remove(path)
        self._collector.rewind(read_state(checkpoint).collector)
        shutil.copyfile(self._folder / METRICS_FILE, self._folder / rollback.metrics)
        record_rollback(self._folder, rollback)
