"""``metrics.jsonl``: one line of metrics per finished step."""

import json
import os
from pathlib import Path

from train.manifest import sync

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the lines of ``metrics.jsonl``; an incomplete last line, left by a kill, is skipped."""
    if not path.exists():
        return []
    # Without a newline at its end the last line is incomplete; with one, the last element is empty.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def truncate_metrics(path: Path, step: int) -> None:
    """Drops lines after ``step``, so that a resumed run logs each step only once."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    sync(temporary)  # without it a power failure could leave an empty file under the final name
    os.replace(temporary, path)
