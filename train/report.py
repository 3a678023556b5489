"""Reports the progress of a run: progress bar, ``metrics.jsonl``, curves, readable rollouts, trackers."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from configs.progress import progress_bar
from configs.schema import TrainingConfig
from rollout.groups import call_id
from rollout.records import TRACE, Rollout
from train.curves import CURVES_FILE, draw_curves
from train.metrics_file import METRICS_FILE, truncate_metrics
from train.trace import CreditRecord
from train.trackers import Trackers

ROLLOUT_COLUMNS = ("problem", "operator", "gold answer", "call", "role", "reward", "text")


class Reporter:
    """Writes the progress of a run to ``output_dir``. Created on rank 0 only."""

    def __init__(self, config: TrainingConfig) -> None:
        self._directory = Path(config.output_dir)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._bar: tqdm | None = None
        self._trackers: Trackers | None = None

    def start(self, step: int) -> None:
        """Starts after ``step`` finished steps, again after a rollback; drops metrics of later steps."""
        self.close()
        truncate_metrics(self._directory / METRICS_FILE, step)
        steps = self._config.train.max_steps
        self._bar = progress_bar(title="train", total=steps, done=step, unit="step")
        self._trackers = Trackers(self._config, step, self.note)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line to ``metrics.jsonl``; it is on disk (fsync) when this returns."""
        with open(self._directory / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._trackers is not None:
            self._trackers.log(metrics, step)
        if self._bar is not None:
            self._bar.set_postfix(_brief(metrics), refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Prints one line without breaking the progress bar."""
        tqdm.write(text)

    def write_rollouts(
        self, step: int, rollouts: Sequence[Rollout], credits: Mapping[str, CreditRecord]
    ) -> None:
        """Writes ``rollouts`` of a step as readable text to ``rollouts/step_000012.txt``.

        ``credits`` holds the rewards and advantages of credited calls, by call id.
        """
        directory = self._directory / "rollouts"
        directory.mkdir(exist_ok=True)
        text = "\n\n".join(_readable(rollout, number, credits) for number, rollout in enumerate(rollouts))
        (directory / f"step_{step:06d}.txt").write_text(text, encoding="utf-8")
        if self._trackers is not None:
            rows = [row for number, each in enumerate(rollouts) for row in _rows(each, number, credits)]
            self._trackers.table("rollouts", ROLLOUT_COLUMNS, rows, step)

    def draw(self, step: int) -> None:
        """Draws ``curves.png`` from ``metrics.jsonl`` and the report, for the trackers, too."""
        picture = self._directory / CURVES_FILE
        save_steps = self._config.train.save_steps
        drawn = draw_curves(self._directory / METRICS_FILE, picture, save_steps=save_steps)
        if drawn and self._trackers is not None:
            self._trackers.picture(picture, step)

    def close(self) -> None:
        """Closes the progress bar and the trackers."""
        if self._bar is not None:
            self._bar.close()
        if self._trackers is not None:
            self._trackers.finish()
        self._bar = self._trackers = None


def _brief(metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the few metrics shown next to the progress bar."""
    shown = {
        "reward": metrics.get("reward"),
        "trace": metrics.get(f"accuracy/{TRACE}"),
        "operator": metrics.get("accuracy/operator"),
        "tok/s": metrics.get("tokens_per_second"),
    }
    brief = {name: f"{value:.3g}" for name, value in shown.items() if value is not None}
    if alarms := [name.removeprefix("alarm/") for name in metrics if name.startswith("alarm/")]:
        brief["ALARM"] = ",".join(alarms)
    return brief


def _readable(rollout: Rollout, number: int, credits: Mapping[str, CreditRecord]) -> str:
    lines = [f"### {rollout.problem.id} ({rollout.operator}), gold answer: {rollout.problem.answer}"]
    lines.append(rollout.problem.question)
    for place, call in enumerate(rollout.calls):
        verdict = rollout.verdicts.get(place)
        status = f", {verdict.status}" if verdict is not None else ""
        lines.append(
            f"--- call {place}: {call.role}, round {call.round}, from {list(call.parents)}, "
            f"{len(call.prompt_ids)}+{len(call.completion_ids)} tokens, {call.finish}{status}"
            f"{_credit(credits.get(call_id(number, place)))}"
        )
        lines.append(call.text)
    return "\n".join(lines)


def _rows(rollout: Rollout, number: int, credits: Mapping[str, CreditRecord]) -> Iterator[tuple[str, ...]]:
    """Yields a row of ``ROLLOUT_COLUMNS`` for each call."""
    for place, call in enumerate(rollout.calls):
        credit = credits.get(call_id(number, place))
        reward = "" if credit is None else f"{credit.reward:.3g}"
        problem = rollout.problem
        yield (problem.id, rollout.operator, problem.answer, str(place), call.role, reward, call.text)


def _credit(credit: CreditRecord | None) -> str:
    """Returns reward and advantage of a call, as the end of its line."""
    if credit is None:
        return ""
    if credit.advantage is None:
        return f", reward {credit.reward}, not trained on: {credit.dropped or 'no token'}"
    return f", reward {credit.reward}, advantage {credit.advantage:+.3g}"
