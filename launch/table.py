"""``python -m launch.table DIR``: writes the runs of a sweep as a table and a plot."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from rollout.evaluation.tables import markdown_table, percent_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Path of its folder, relative to the folder of the sweep."""
    overrides: tuple[str, ...]
    status: str
    """``done``, ``running`` (also a run that was killed: the two look the same), or ``failed (STATUS)``."""
    rows: tuple[dict[str, Any], ...]
    """Rows of its report.json with phase ``after``; empty if there is no report."""


def read_runs(folder: Path) -> list[SweepRun]:
    """Returns the runs under ``folder``, sorted by path.

    Raises:
        FileNotFoundError: If there is no run.
    """
    runs = [_read_run(path.parent, folder) for path in sorted(folder.rglob("status"))]
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no run of a sweep. Pass the folder that python -m launch --multirun wrote, "
            "hydra.sweep.dir."
        )
    return runs


def _read_run(folder: Path, sweep: Path) -> SweepRun:
    said = (folder / "status").read_text().strip()
    report = folder / "report.json"
    rows = json.loads(report.read_text())["rows"] if report.is_file() else []
    return SweepRun(
        name=str(folder.relative_to(sweep)),
        overrides=tuple((folder / "job.txt").read_text().split("\n")[:-1]),
        status={"0": "done", "running": "running"}.get(said, f"failed ({said})"),
        rows=tuple(row for row in rows if row["phase"] == "after"),
    )


def table(runs: Sequence[SweepRun]) -> str:
    """Returns a Markdown table of the options that differ between runs, and accuracies after training."""
    pairs = [_settings(run) for run in runs]
    keys = _differing(pairs)
    operators = list(dict.fromkeys(row["operator"] for run in runs for row in run.rows))
    header = [*(keys or ["run"]), "status", *(f"{name} % [95%]" for name in operators)]
    rows = []
    for run, own in zip(runs, pairs, strict=True):
        cells = [own.get(key, "") for key in keys] or [run.name]
        found = {row["operator"]: row for row in run.rows}
        rows.append([*cells, run.status, *(_accuracy(found.get(name)) for name in operators)])
    return "\n".join(markdown_table(header, rows)) + "\n"


def _differing(pairs: Sequence[dict[str, str]]) -> list[str]:
    """Returns the options that do not have the same value in all runs."""
    return [key for key in dict.fromkeys(k for p in pairs for k in p) if len({p.get(key) for p in pairs}) > 1]


def labels(runs: Sequence[SweepRun]) -> list[str]:
    """Returns what tells each run from the others: its differing options, else the name of its folder."""
    pairs = [_settings(run) for run in runs]
    keys = _differing(pairs)
    own = [", ".join(f"{key}={pair[key]}" for key in keys if key in pair) for pair in pairs]
    return [label or run.name for label, run in zip(own, runs, strict=True)]


def _settings(run: SweepRun) -> dict[str, str]:
    split = (item.lstrip("+").partition("=") for item in run.overrides)
    return {key: value for key, _, value in split}


def _accuracy(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return percent_interval(row["accuracy"], row["ci_low"], row["ci_high"])


def draw(runs: Sequence[SweepRun], path: Path) -> None:
    """Draws accuracies after training with their 95% intervals, one line per run."""
    shown = [run for run in runs if run.rows]
    operators = list(dict.fromkeys(row["operator"] for run in shown for row in run.rows))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(shown)), layout="constrained")
    for shift, name in enumerate(operators):
        points = [(i, row) for i, run in enumerate(shown) for row in run.rows if row["operator"] == name]
        means = [100 * row["accuracy"] for _, row in points]
        spans = [
            [100 * (row["accuracy"] - row["ci_low"]) for _, row in points],
            [100 * (row["ci_high"] - row["accuracy"]) for _, row in points],
        ]
        # Spread around the line of the run, so that the intervals of the operators do not overlap.
        heights = [i + 0.15 * (shift - (len(operators) - 1) / 2) for i, _ in points]
        axes.errorbar(means, heights, xerr=spans, fmt="o", capsize=3, label=name)
    axes.set_yticks(range(len(shown)), labels(shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("solved after training, % of held-out problems (95% intervals)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m launch.table", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the sweep, e.g. multirun/demo")
    folder = parser.parse_args().folder
    try:
        runs = read_runs(folder)
    except FileNotFoundError as error:
        sys.exit(f"table: {error}")
    text = table(runs)
    (folder / "table.md").write_text(text)
    written = ["table.md"]
    if any(run.rows for run in runs):
        draw(runs, folder / "table.png")
        written.append("table.png")
    print(text)
    print(f"Written to {folder}: {', '.join(written)}", file=sys.stderr)


if __name__ == "__main__":
    main()
