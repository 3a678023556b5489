"""Keeps the figures of ``make bench``, and compares a new run with them.

    python tests/bench/results.py record NEW.jsonl     # writes tests/bench/results.json
    python tests/bench/results.py compare NEW.jsonl    # status 1 if a ratio fell by more than a tenth

Ratios are compared, since each is of two things in one run; seconds of different machines are not.
"""

import argparse
import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
TOLERANCE = 0.1
PACKAGES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "aiohttp", "msgspec")

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a run of the benches; what else they printed is left out."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith('{"bench"')]


def record(lines: list[Line]) -> None:
    """Writes results.json. Lines of benches that did not run stay as they are."""
    before = json.loads(RESULTS.read_text())["results"] if RESULTS.is_file() else []
    ran = {line["bench"] for line in lines}
    kept = [line for line in before if line["bench"] not in ran]
    about = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    dated = [line | {"date": about["date"]} for line in lines]
    results = sorted(kept + dated, key=lambda line: line["bench"])
    RESULTS.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


def compare(lines: list[Line]) -> list[str]:
    """What became slower, a sentence each."""
    known = {(line["bench"], line["case"]): line for line in json.loads(RESULTS.read_text())["results"]}
    fell = []
    for line in lines:
        if line["ratio"] is None:  # a figure by itself
            continue
        before = known.get((line["bench"], line["case"]))
        name = f"{line['bench']}: {line['case']}"
        if before is None:
            print(f"{name}: {line['ratio']} (new)")
            continue
        print(f"{name}: {line['ratio']}, was {before['ratio']}")
        if line["ratio"] < (1 - TOLERANCE) * before["ratio"]:
            fell.append(f"{name} fell from {before['ratio']} to {line['ratio']}.")
    return fell


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("run", type=Path, help="what make bench printed")
    options = parser.parse_args()
    lines = read(options.run)
    if not lines:
        sys.exit(f"results: {options.run} holds no line of a bench.")
    if options.action == "record":
        record(lines)
        return 0
    if not RESULTS.is_file():
        sys.exit(f"results: {RESULTS} does not exist, nothing to compare with: record a run first.")
    fell = compare(lines)
    print("\n".join(fell))
    return int(bool(fell))


if __name__ == "__main__":
    sys.exit(main())
