"""The figures of ``python tests/gpu``: one JSON object a line, and the file with the last of each part."""

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "tests" / "bench" / "results_gpu.json"
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "vllm", "trl", "liger-kernel")


class NotAFigure(ValueError):
    """A printed line that is not an object with the fields of a ``Line``."""


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, or the status of a part."""

    part: str
    name: str
    value: float | bool | str
    unit: str = ""
    target: float | None = None
    """The least value that is good enough; the greatest if the unit is a time."""

    @property
    def failed(self) -> bool:
        """True for an equality that does not hold, and for a part that neither ended well nor was skipped."""
        if self.name == "status":
            return not str(self.value).startswith(("ok", "skipped"))
        return self.value is False

    @property
    def missed(self) -> bool:
        """True for a figure on the wrong side of its target."""
        if self.target is None or isinstance(self.value, str):
            return False
        return self.value > self.target if self.unit in ("s", "ms") else self.value < self.target

    def json(self) -> str:
        """Returns the line as one JSON object."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in ("", None)})


def read_line(part: str, text: str) -> Line:
    """Returns the figure that a part printed.

    Raises:
        NotAFigure: If the text is no JSON object with these fields, of another part, or not finite.
    """
    try:
        line = Line(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise NotAFigure(text) from error
    if line.part != part or (isinstance(line.value, float) and not math.isfinite(line.value)):
        raise NotAFigure(text)
    return line


def show(lines: Sequence[Line]) -> str:
    """Returns a table of all figures, and of each part's status."""
    rows = [("part", "figure", "value", "target")]
    for line in lines:
        value = f"{line.value:.4g}" if isinstance(line.value, float) else str(line.value)
        mark = " missed" if line.missed else " FAILED" if line.failed else ""
        target = "" if line.target is None else f"{line.target:g}"
        rows.append((line.part, line.name, f"{value} {line.unit}".strip() + mark, target))
    widths = [max(len(row[column]) for row in rows if "\n" not in row[column]) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def keep_last(lines: Sequence[Line], path: Path = RESULTS) -> None:
    """Writes the figures of each part that ran over its last ones; other parts keep theirs."""
    import torch

    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "card": torch.cuda.get_device_name(0),
        "python": platform.python_version(),
        "versions": _versions(),
    }
    for part in dict.fromkeys(line.part for line in lines):
        own = [line for line in lines if line.part == part]
        if len(own) == 1 and own[0].name == "status" and own[0].value != "ok":
            continue  # a part that saw nothing does not replace what was seen before
        kept[part] = {**about, "figures": [json.loads(line.json()) for line in own]}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    command = ["git", "-C", str(REPO), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # an unpacked archive holds no repository
        return "unknown"
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # packages on PYTHONPATH alone may lack metadata
            continue
    return found
