"""The alarms: when the metrics of a run show that it fails. Pure; docs/metrics.md has the same table.

Most alarms compare a metric with its own start, because healthy values differ between models and tasks. A
metric of step t measures the policy before the update of step t.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Literal

START_STEPS = 3
"""Number of first values whose mean is the start of a metric; fewer as long as there are fewer."""
MEDIAN_STEPS = 5
"""Least number of earlier values of which a median is taken."""
SOLVED = 0.9
"""Mean accuracy of a role from which its samples may be alike: most of them are right."""
UNPARSABLE = "unparsable"
"""Name of the derived metric: share of the checked answers without a readable answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alarm: the mean of a metric's last values is beyond ``factor * reference + offset``."""

    name: str
    metric: str
    """Key of the metric; with ``/`` at its end, the metric of each role."""
    worse: Literal["higher", "lower"]
    """Side of the limit on which the alarm is raised."""
    against: Literal["start", "best", "median", "nothing"]
    """The reference: mean of the first values, highest earlier mean of ``window`` values, median of all
    values before the window, or 0. With ``median``, the window's median is compared, not its mean."""
    factor: float = 0.0
    offset: float = 0.0
    window: int = 1
    """Number of last values that are averaged; no alarm is raised before there are as many."""
    unless_solved: bool = False
    """Not raised for a role whose accuracy, a mean of ``window`` values, has reached ``SOLVED``."""
    reason: str
    """Source of the threshold."""

    @property
    def limit(self) -> str:
        """The limit in words, such as ``0.5 x start``."""
        parts = [f"{self.factor:g} x {self.against}"] if self.against != "nothing" else []
        if self.offset or not parts:
            parts.append(f"{abs(self.offset):g}")
        return (" - " if self.offset < 0 else " + ").join(parts)


RULES = (
    Rule(
        name="length_halved",
        metric="completion_tokens/",
        worse="lower",
        against="start",
        factor=0.5,
        reason="the recorded collapse fell to 0.2 of its start in one step; healthy runs stayed above 0.9",
    ),
    Rule(
        name="length_doubled",
        metric="completion_tokens/",
        worse="higher",
        against="start",
        factor=2.0,
        reason="the demo, whose answers grow as it learns, reaches 1.4 of its start",
    ),
    Rule(
        name="entropy_rose",
        metric="entropy/",
        worse="higher",
        against="start",
        factor=2.0,
        offset=0.5,
        reason="DeepCoder's authors call a rise harmless below about 1 nat; a user's run failed at 2 "
        "(rllm, issue 116); healthy policies start at 0.07 to 0.5",
    ),
    Rule(
        name="entropy_vanished",
        metric="entropy/",
        worse="lower",
        against="start",
        factor=0.05,
        window=5,
        unless_solved=True,
        reason="the demo learns at 0.18 of its start; at 0 all samples are equal and nothing is learned; "
        "a pretrained model that came to solve 95% of its training problems went below 0.05",
    ),
    Rule(
        name="far_from_initial",
        metric="ref_kl/",
        worse="higher",
        against="nothing",
        offset=0.5,
        reason="twice the target of 6 nats for 24 tokens of lm-human-preferences (its launch.py)",
    ),
    Rule(
        name="no_signal",
        metric="groups_without_signal/",
        worse="higher",
        against="nothing",
        offset=0.95,
        window=5,
        unless_solved=True,
        reason="fewer than 2 groups of 32 are left to learn from; the demo's 5-step mean reaches 0.83",
    ),
    Rule(
        name="truncated",
        metric="truncated/",
        worse="higher",
        against="start",
        factor=1.0,
        offset=0.2,
        window=3,
        reason="runs with 0.10 to 0.15 were unstable (docs/metrics.md); weak models start there, so only a "
        "rise by more than that counts",
    ),
    Rule(
        name="unparsable",
        metric=UNPARSABLE,
        worse="higher",
        against="start",
        factor=1.0,
        offset=0.2,
        window=3,
        reason="as truncated: an answer that was cut off has no answer to read",
    ),
    Rule(
        name="accuracy_fell",
        metric="accuracy/",
        worse="lower",
        against="best",
        factor=0.5,
        offset=-0.05,
        window=5,
        reason="half of the best is lost; the offset is the sampling error of 5 steps of 32 problems",
    ),
    Rule(
        name="sampler_mismatch",
        metric="mismatch_kl/",
        worse="higher",
        against="nothing",
        offset=0.02,
        reason="a token's log ratio then deviates by sqrt(2 x 0.02) = 0.2, the usual clip range; measured: "
        "3e-4 in bfloat16, 1e-8 in float32",
    ),
    Rule(
        name="gradient_grew",
        metric="grad_norm",
        worse="higher",
        against="median",
        factor=5.0,
        window=3,
        reason="spikes alone did not hurt the reward (trl, issue 2980), so the median of three steps counts; "
        "the demo's reaches 1.2, one step of the recorded collapse 4.8",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A rule that a metric broke in one step."""

    step: int
    rule: Rule
    metric: str
    value: float
    """The value that was compared: the mean of the window, or the value of the step if it is not finite."""
    limit: float | None
    """None if the value is not finite."""

    def __str__(self) -> str:
        if self.limit is None:
            return f"step {self.step}: {self.rule.name}: {self.metric} is {self.value}, which is not finite"
        beyond = "above" if self.rule.worse == "higher" else "below"
        return (
            f"step {self.step}: {self.rule.name}: {self.metric} is {self.value:.3g}, {beyond} the limit "
            f"{self.limit:.3g} ({self.rule.limit})"
        )


@dataclass(slots=True)
class _Series:
    """The finite values of a metric so far, under one rule."""

    values: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    """Means of the last ``window`` values, since there were as many."""


class Monitor:
    """Applies the rules to one step after the other."""

    def __init__(self, ignored: Collection[str] = ()) -> None:
        """``ignored`` holds the names of rules that are not applied."""
        self._rules = [rule for rule in RULES if rule.name not in ignored]
        self._series: dict[tuple[str, str], _Series] = {}
        self._accuracy: dict[str, list[float]] = defaultdict(list)
        """Accuracy of each step so far, by role."""

    def add(self, line: Mapping[str, float]) -> list[Alarm]:
        """Returns the alarms of the next step; ``line`` holds its metrics and its number as ``step``."""
        metrics = _watched(line)
        for name, value in metrics.items():
            if name.startswith("accuracy/"):
                self._accuracy[name.removeprefix("accuracy/")].append(value)
        alarms = []
        for rule in self._rules:
            for metric in _metrics_of(rule, metrics):
                series = self._series.setdefault((rule.name, metric), _Series())
                found = _check(rule, series, metrics[metric])
                if found is None:
                    continue
                value, limit = found
                # Samples of a solved task are alike; a value that is not finite is an alarm all the same.
                if limit is None or not (rule.unless_solved and self._is_solved(rule, metric)):
                    step = int(line["step"])
                    alarms.append(Alarm(step=step, rule=rule, metric=metric, value=value, limit=limit))
        return alarms

    def _is_solved(self, rule: Rule, metric: str) -> bool:
        values = self._accuracy[metric.removeprefix(rule.metric)]
        ends = range(rule.window, len(values) + 1)
        return any(fmean(values[end - rule.window : end]) >= SOLVED for end in ends)


def alarms_of(history: Iterable[Mapping[str, float]], ignored: Collection[str] = ()) -> list[Alarm]:
    """Returns the alarms of a recorded run, whose lines are in order of their ``step``."""
    monitor = Monitor(ignored)
    return [alarm for line in history for alarm in monitor.add(line)]


def alarm_metrics(alarms: Collection[Alarm]) -> dict[str, float]:
    """Returns ``alarms``, the number of alarms of a step, and ``alarm/NAME`` for each that was raised."""
    metrics = {"alarms": float(len(alarms))}
    for alarm in alarms:
        name = f"alarm/{alarm.rule.name}"
        metrics[name] = metrics.get(name, 0.0) + 1.0
    return metrics


def _watched(line: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics to which rules apply, with derived ones."""
    metrics = dict(line)
    verdicts = {name: value for name, value in line.items() if name.startswith("verdict/")}
    if total := sum(verdicts.values()):
        metrics[UNPARSABLE] = verdicts.get("verdict/unparsable", 0.0) / total
    if metrics.get("grad_norm") == 0.0:
        del metrics["grad_norm"]  # a step without updates, which would lower the median
    return metrics


def _metrics_of(rule: Rule, metrics: Mapping[str, float]) -> Iterator[str]:
    for name in metrics:
        if name == rule.metric or (rule.metric.endswith("/") and name.startswith(rule.metric)):
            yield name


def _check(rule: Rule, series: _Series, value: float) -> tuple[float, float | None] | None:
    """Adds ``value`` to the series; returns the compared value and the limit if the rule is broken."""
    if not math.isfinite(value):
        return value, None
    earlier = len(series.values)
    series.values.append(value)
    if earlier + 1 < rule.window:
        return None
    window = series.values[-rule.window :]
    recent = median(window) if rule.against == "median" else fmean(window)
    reference = _reference(rule, series, earlier)
    series.means.append(recent)
    if reference is None:
        return None
    limit = rule.factor * reference + rule.offset
    broken = recent > limit if rule.worse == "higher" else recent < limit
    return (recent, limit) if broken else None


def _reference(rule: Rule, series: _Series, earlier: int) -> float | None:
    """Returns what the recent value is compared with; None if there are too few ``earlier`` values."""
    if rule.against == "nothing":
        return 0.0
    if rule.against == "best":
        return max(series.means, default=None)
    if rule.against == "median":
        before = series.values[: -rule.window]
        return median(before) if len(before) >= MEDIAN_STEPS else None
    return fmean(series.values[: min(START_STEPS, earlier)]) if earlier else None
