"""``curves.png``: the metrics of a run over its steps, one panel for each thing to look at."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.metrics_file import read_metrics

CURVES_FILE = "curves.png"
REPORT_FILE = "report.json"

SMOOTHED_FROM = 12
"""Number of points from which a smoothed line is drawn over the measured one."""
SPAN = 0.1
"""Steps over which the smoothing averages, as a share of all."""
COLUMNS = 3
LOG_FROM = 10.0
"""Ratio of the largest to the least value from which a logarithmic axis helps."""
NOISE = 1e-6
"""Nats per token below which two policies differ by rounding only."""
ALARM, CHECKPOINT = "tab:red", "0.4"
"""Colours of the vertical marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel, which is left out if the run has none of its metrics."""

    title: str
    metrics: tuple[str, ...]
    """Metrics by name, or by prefix if it ends with ``/``."""
    least: float = -math.inf
    """Values below are not shown: they say no more than zero would, and stretch the axis."""
    log: bool = False
    """The axis is logarithmic where the values span ``LOG_FROM``; they must be positive, so set ``least``."""
    share: bool = False
    """The axis is that of a share, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A metric over the steps at which it was measured."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


PANELS = (
    Panel(title="accuracy on training problems", metrics=("accuracy/", "draft/accuracy"), share=True),
    Panel(title="reward", metrics=("reward/",)),
    Panel(title="completion tokens", metrics=("completion_tokens/",)),
    Panel(title="truncated, share of completions", metrics=("truncated/",), share=True),
    Panel(title="groups without signal, share", metrics=("groups_without_signal/",), share=True),
    Panel(title="entropy, nats per token", metrics=("entropy/",)),
    Panel(title="KL of sampler and policy, nats per token", metrics=("kl/",), log=True, least=NOISE),
    Panel(title="KL of sampler and old policy", metrics=("mismatch_kl/",), log=True, least=NOISE),
    Panel(title="KL from the reference, nats per token", metrics=("ref_kl/",), log=True, least=NOISE),
    Panel(title="gradient norm", metrics=("grad_norm",), log=True, least=NOISE),
    Panel(title="seconds of a step", metrics=("time/",), log=True, least=1e-3),
    Panel(title="tokens per second", metrics=("tokens_per_second",)),
    Panel(title="peak memory, GiB", metrics=("memory/",)),
)
HELD_OUT = "accuracy on held-out problems, 95% intervals"
"""Title of the first panel, whose points are those of the report."""


def draw_curves(metrics: Path, picture: Path, *, save_steps: int = 0) -> bool:
    """Draws a run's metrics, and the evaluations of the report beside them; returns False if there are none.

    Args:
        metrics: The run's ``metrics.jsonl``.
        picture: PNG file to write.
        save_steps: Interval of the checkpoints, which are marked; 0: none.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(metrics)
    last = max((int(line["step"]) for line in lines), default=0)
    found = [(panel, curves) for panel in PANELS if (curves := panel_curves(panel, lines))]
    held_out = held_out_rows(metrics.with_name(REPORT_FILE), last)
    number = len(found) + bool(held_out)
    if not number:
        return False
    rows = math.ceil(number / COLUMNS)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(5.4 * COLUMNS, 3.3 * rows), squeeze=False, layout="constrained"
    )
    axes = list(grid.flat)
    for axis in axes[number:]:
        axis.remove()
    if held_out:
        _draw_held_out(axes.pop(0), held_out)
    for axis, (panel, curves) in zip(axes, found, strict=False):
        _draw_panel(axis, panel, curves)
    for axis in figure.axes:
        _mark(axis, lines, save_steps)
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)
    return True


def panel_curves(panel: Panel, lines: Sequence[Mapping[str, float]]) -> list[Curve]:
    """Returns the curves of a panel; values that its axis cannot show are left out."""

    def belongs(name: str) -> bool:
        return any(name.startswith(m) if m.endswith("/") else name == m for m in panel.metrics)

    curves = []
    for name in sorted({name for line in lines for name in line if belongs(name)}):
        points = [(int(line["step"]), line[name]) for line in lines if _is_shown(line.get(name), panel.least)]
        if points:
            steps, values = zip(*points, strict=True)
            short = name if name in panel.metrics else name.partition("/")[2]
            curves.append(Curve(name=short, steps=steps, values=values))
    return curves


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Returns an exponential moving average over about ``span`` values, unbiased at its start."""
    decay = 1 - 1 / max(span, 1)
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        averages.append(total / weight)
    return averages


def held_out_rows(report: Path, last: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the rows of a report with the step after which each was measured; ``last`` is the last step."""
    if not report.is_file():
        return []
    rows = json.loads(report.read_text(encoding="utf-8"))["rows"]
    return sorted(((_step(row["phase"], last), row) for row in rows), key=lambda pair: pair[0])


def _step(phase: str, last: int) -> int:
    known = {"before": 0, "after": last}
    return known[phase] if phase in known else int(phase.removeprefix("step_"))


def _is_shown(value: float | None, least: float) -> bool:
    return value is not None and math.isfinite(value) and value >= least


def _draw_held_out(axis: Any, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    of_operator: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for step, row in rows:
        of_operator.setdefault(row["operator"], []).append((step, row))
    for name, points in of_operator.items():
        accuracies = [row["accuracy"] for _, row in points]
        spans = [
            [row["accuracy"] - row["ci_low"] for _, row in points],
            [row["ci_high"] - row["accuracy"] for _, row in points],
        ]
        axis.errorbar([step for step, _ in points], accuracies, spans, label=name, marker="o", capsize=3)
    axis.set_title(HELD_OUT, fontsize=10)
    axis.set_ylim(-0.03, 1.03)
    axis.legend(fontsize=7)


def _draw_panel(axis: Any, panel: Panel, curves: Sequence[Curve]) -> None:
    for place, curve in enumerate(curves):
        color = f"C{place % 10}"
        if len(curve.steps) < SMOOTHED_FROM:
            axis.plot(curve.steps, curve.values, color=color, label=curve.name, marker=".")
            continue
        axis.plot(curve.steps, curve.values, color=color, alpha=0.25, linewidth=0.8)
        span = SPAN * len(curve.steps)
        axis.plot(curve.steps, smooth(curve.values, span), color=color, label=curve.name, linewidth=1.6)
    axis.set_title(panel.title, fontsize=10)
    values = [value for curve in curves for value in curve.values]
    if panel.log and max(values) >= LOG_FROM * min(values):
        axis.set_yscale("log")
    if panel.share:
        axis.set_ylim(-0.03, 1.03)
    if len(curves) > 1 or curves[0].name not in panel.metrics:
        axis.legend(fontsize=7)


def _mark(axis: Any, lines: Sequence[Mapping[str, float]], save_steps: int) -> None:
    """Marks checkpoints (grey) and alarms (red, with their names) by vertical lines."""
    steps = [int(line["step"]) for line in lines]
    for step in steps:
        if save_steps and (step % save_steps == 0 or step == steps[-1]):
            axis.axvline(step, color=CHECKPOINT, linewidth=0.9, linestyle=":", zorder=1.8)
    for line in lines:
        names = [name.removeprefix("alarm/") for name in line if name.startswith("alarm/")]
        if names:
            axis.axvline(line["step"], color=ALARM, linewidth=0.9, alpha=0.6, zorder=1.8)
            axis.annotate(
                ", ".join(names),
                (line["step"], 1),
                xycoords=("data", "axes fraction"),
                xytext=(-2, -2),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=6,
                color=ALARM,
            )
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(color="0.93")
    axis.spines[["top", "right"]].set_visible(False)
