"""Draws the picture of a report: accuracy against the tokens of the longest chain, and against all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

from rollout.evaluation.report_rows import ReportRow, base_name, row_name, short_name

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import Bbox

PANELS = (
    (
        "b_seq",
        "Latency: accuracy against tokens in sequence",
        "tokens on the longest chain (B_seq)",
    ),
    ("b_total", "Cost: accuracy against all tokens", "tokens of all calls (B_total)"),
)
MARKERS = "osv^PX"
"""Marks of operators, one for each turn of the colours."""
FEW = 4
"""Number of matched votes up to which a label names what the vote is matched to."""
VOTING = "0.45"
"""Grey level of traces and their votes, the reference for every operator."""
SIDES = ((1, "left"), (-1, "right"))
PLACES = (
    (11, 0, "left", "center"),
    (-11, 0, "right", "center"),
    (9, 11, "left", "bottom"),
    (-9, 11, "right", "bottom"),
    (9, -11, "left", "top"),
    (-9, -11, "right", "top"),
    *((s * 14, d * far, h, "center") for far in range(20, 240, 8) for d in (1, -1) for s, h in SIDES),
)
"""Candidate positions of a label, in points from its mark, the best first; far ones get a line to it."""
GLOSSARY = {
    "trace": "one chain of thought",
    "sr": "one draft, refined in turn",
    "pdr": "parallel drafts, distilled, refined",
    "majority": "the most frequent answer of n traces",
    "best_of_n": "of n traces the one that the policy itself trusts most",
    "rsa": "a population whose members aggregate random others",
    "markovian_rsa": "the same from the ends of chains",
    "pacore": "wide pdr of all messages",
    "reasoning_cache": "one chain, summarised and restarted",
    "recursive_summary": "pdr with an updated summary",
    "genselect": "a call selects one of n traces",
    "tournament": "a knockout of n traces",
    "solver_judge": "drafts and a judge that writes the answer",
    "adaptive": "pdr that stops when drafts agree",
}
"""Descriptions of the built-in operators, for the footnote."""
FOOTNOTE = "Tokens in + out, mean per answer, log scale. Bars: 95% bootstrap intervals over problems."
RINGS = "Small rings: earlier rounds of an operator, had one stopped there."
VOTES = "Grey: one trace, and majority votes of as many traces as the named operator costs."
BETTER = "Up and left is better."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    x: float
    row: ReportRow
    color: Any
    marker: str
    label: str


def draw_pareto(rows: Sequence[ReportRow], path: Path) -> None:
    """Draws final rows, and the earlier rounds that could have been the answer, into a PNG file."""
    styles = _styles(rows)
    figure, axes = pyplot.subplots(1, 2, figsize=(15, 6.4), sharey=True, layout="constrained")
    for axis, (budget, title, label) in zip(axes, PANELS, strict=True):
        _panel(axis, rows, budget, styles)
        axis.set_title(title, fontsize=12, loc="left")
        axis.set_xlabel(label, fontsize=11)
    axes[0].set_ylabel(f"solved, % of {max(row.problems for row in rows)} problems", fontsize=11)
    below = f"{footnote(rows)}\n{_glossary(rows)}"
    figure.text(0.01, -0.01, below, fontsize=9, color="0.3", va="top", wrap=True)
    # Labels last: their places are in pixels, which move while anything else is added.
    for axis, (budget, _, _) in zip(axes, PANELS, strict=True):
        _label(axis, _points(rows, budget, styles))
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.15)
    pyplot.close(figure)


def footnote(rows: Sequence[ReportRow]) -> str:
    """Returns what explains the marks that the picture of ``rows`` has."""
    has_rings = any(not row.final and row.width == 1 for row in rows)
    has_votes = any(row.vote is not None for row in rows)
    return " ".join([FOOTNOTE, *[RINGS] * has_rings, *[VOTES] * has_votes, BETTER])


def _glossary(rows: Sequence[ReportRow]) -> str:
    names = dict.fromkeys(name for row in rows if (name := base_name(row.operator)) in GLOSSARY)
    return "; ".join(f"{name}: {GLOSSARY[name]}" for name in names)


_Styles: TypeAlias = dict[str, tuple[Any, str]]
"""Operator -> its colour and its mark."""


def _styles(rows: Sequence[ReportRow]) -> _Styles:
    """Returns one colour and mark for each operator; grey for traces and votes."""
    # tab10 without its own grey (7).
    wheel = [pyplot.get_cmap("tab10")(i) for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
    names = dict.fromkeys(row.operator for row in rows if not _is_voting(row))
    styles: _Styles = {row.operator: (VOTING, "o" if row.vote is None else "D") for row in rows}
    for i, name in enumerate(names):
        styles[name] = (wheel[i % len(wheel)], MARKERS[i // len(wheel) % len(MARKERS)])
    return styles


def _is_voting(row: ReportRow) -> bool:
    return row.vote is not None or row.operator == "trace"


def _points(rows: Sequence[ReportRow], budget: str, styles: _Styles) -> list[_Point]:
    are_few = sum(row.vote is not None for row in rows) <= FEW
    return [
        _Point(
            x=getattr(row, budget),
            row=row,
            color=styles[row.operator][0],
            marker=styles[row.operator][1],
            label=f"{_name(row, are_few)}  {100 * row.accuracy:.1f}",
        )
        for row in rows
        if row.final
    ]


def _name(row: ReportRow, are_few: bool) -> str:
    """Returns the name that labels a point; where there are many votes, without what they are matched to."""
    return row_name(row).replace("matched to", "cost of") if are_few else short_name(row)


def _panel(axis: Axes, rows: Sequence[ReportRow], budget: str, styles: _Styles) -> None:
    for point in _points(rows, budget, styles):
        row = point.row
        axis.errorbar(
            point.x,
            100 * row.accuracy,
            yerr=[[100 * (row.accuracy - row.ci_low)], [100 * (row.ci_high - row.accuracy)]],
            marker=point.marker,
            markersize=8,
            color=point.color,
            capsize=4,
            linewidth=1.4,
            zorder=3,
        )
    for name in dict.fromkeys(row.operator for row in rows):
        # Only rounds of one attempt could have been the answer.
        stops = [row for row in rows if row.operator == name and (row.final or row.width == 1)]
        _path(axis, stops, budget, styles[name][0])
    _path(axis, sorted((r for r in rows if _is_voting(r)), key=lambda r: r.b_total), budget, VOTING)
    axis.set_xscale("log")
    axis.margins(x=0.22, y=0.12)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(_tokens))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, place: ""))
    axis.grid(True, which="major", color="0.9", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def _path(axis: Axes, stops: Sequence[ReportRow], budget: str, color: Any) -> None:
    """Draws a line through successive rows, with a ring at each round before the final one."""
    if len(stops) < 2:
        return
    x = [getattr(row, budget) for row in stops]
    y = [100 * row.accuracy for row in stops]
    axis.plot(x, y, linestyle="--", linewidth=1, color=color, alpha=0.7, zorder=2)
    rings = [i for i, row in enumerate(stops) if not row.final]
    axis.plot(
        [x[i] for i in rings],
        [y[i] for i in rings],
        linestyle="",
        marker="o",
        markersize=5,
        markerfacecolor="white",
        color=color,
        zorder=3,
    )


def _tokens(value: float, place: int) -> str:
    """Formats a number of tokens: 500, 2k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _label(axis: Axes, points: Sequence[_Point]) -> None:
    """Draws the labels, each at the first candidate position where it hides nothing else."""
    # Extents are known only after a draw.
    axis.figure.canvas.draw()
    taken = [_mark(axis, point) for point in points]
    for point in sorted(points, key=lambda p: -p.row.accuracy):
        for dx, dy, ha, va in PLACES:
            text = axis.annotate(
                point.label,
                (point.x, 100 * point.row.accuracy),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=10,
                color=point.color,
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7} if abs(dy) > 12 else None,
                path_effects=[withStroke(linewidth=3.5, foreground="white")],
                zorder=5,
            )
            box = text.get_window_extent()
            if _contains(axis.bbox, box) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _mark(axis: Axes, point: _Point) -> Bbox:
    """Returns the pixels of a point, without its interval: labels may cross it, they have a halo."""
    x, y = axis.transData.transform((point.x, 100 * point.row.accuracy))
    return Bbox([[x - 9, y - 9], [x + 9, y + 9]])


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1
