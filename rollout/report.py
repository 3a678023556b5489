"""The report of an evaluation: JSON for programs, a table for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rollout.evaluate import Difference, Outcome, Row, difference


def pairwise(phase: str, outcomes: Sequence[Outcome]) -> list[Difference]:
    """Each operator against trace, paired by problem; nothing if trace was not run."""
    names = list(dict.fromkeys(item.operator for item in outcomes))
    by_name = {name: [o for o in outcomes if o.operator == name] for name in names}
    return [
        difference(f"{name} {phase}".strip(), by_name[name], f"trace {phase}".strip(), by_name["trace"])
        for name in names
        if name != "trace" and "trace" in by_name
    ]


def write_report(output_dir: Path, rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """Writes report.json and report.md; gives the text of the latter."""
    output_dir.mkdir(parents=True, exist_ok=True)
    text = table(rows, differences)
    content = {
        "rows": [asdict(row) for row in rows],
        "differences": [asdict(item) for item in differences],
    }
    for name, body in (("report.json", json.dumps(content, indent=1)), ("report.md", text)):
        aside = output_dir / f"{name}.tmp"
        aside.write_text(body + "\n", encoding="utf-8")
        aside.replace(output_dir / name)
    return text


def table(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """Two Markdown tables; accuracies in per cent with 95% bootstrap intervals over problems."""
    lines = [
        "| operator | phase | problems x samples | accuracy % [95% interval] | B_seq | B_total |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.operator} | {row.phase} | {row.problems} x {row.samples} | "
            f"{100 * row.accuracy:.1f} [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}] | "
            f"{row.b_seq:.0f} | {row.b_total:.0f} |"
        )
    if differences:
        lines += ["", "| paired difference | points [95% interval] |", "|---|---|"]
        for item in differences:
            lines.append(
                f"| {item.a} - {item.b} | {100 * item.difference:+.1f} "
                f"[{100 * item.ci_low:+.1f}, {100 * item.ci_high:+.1f}] |"
            )
    return "\n".join(lines)
