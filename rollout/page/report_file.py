"""Reads ``report.json`` for the page."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rollout.page.view import DifferenceView, RowView


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """The parts of a report that the page shows."""

    warnings: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    rows: tuple[RowView, ...] = ()
    differences: tuple[DifferenceView, ...] = ()
    failed: int = 0
    note: str = ""
    """Why there is no report, in words."""


def read_report(folder: Path) -> ReportView:
    """Returns the report of a folder; one with a note if there is none, or an earlier version wrote it."""
    path = folder / "report.json"
    if not path.is_file():
        return ReportView(note="There is no report.json: no evaluation has finished.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ReportView(
            warnings=tuple(content.get("warnings", ())),
            alarms=tuple(content.get("alarms", ())),
            rows=tuple(RowView(**_known(row, RowView)) for row in content["rows"]),
            differences=tuple(
                DifferenceView(**_known(each, DifferenceView)) for each in content["differences"]
            ),
            failed=content["run"]["failed"],
        )
    except (ValueError, KeyError, TypeError) as error:
        return ReportView(
            note=f"report.json is not as this version writes it ({error!r}), so it is not shown."
        )


def _known(row: dict[str, Any], kind: type) -> dict[str, Any]:
    """Returns the keys that the page shows; measures that an earlier version did not write are None."""
    missing = {name: None for name in ("truncated", "no_answer") if kind is RowView}
    return missing | {item.name: row[item.name] for item in fields(kind) if item.name in row}
