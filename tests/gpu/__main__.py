"""Checks and measures all that needs a GPU: one command, ten minutes, a line of JSON for each figure.

    python tests/gpu [--device cuda] [--size full] [--only PART ...] [--model FOLDER] [--out FILE]

Each part is a script of this folder with a limit of its own. Its figures are printed and written to
``--out`` as soon as they are known, so that a run that is cut short still tells what it saw. On CUDA the last
figures of each part are kept in tests/bench/results_gpu.json with the commit, the card and the versions.
``--device cpu --size tiny`` takes the same way with tiny shapes, so that the first run on a card is not the
first run of the code. Needs the project and its packages on PYTHONPATH, and neither network nor metadata.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))  # the project may lie in an unpacked archive

from gpu_figures import RESULTS, Line, keep_last, show
from gpu_parts import CPU_FACTOR, PARTS, Part, run_part


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: shapes for a CPU")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--model", type=Path, default=os.environ.get("GPU_MODEL"), help="HF folder to train")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu.jsonl"))
    parser.add_argument(
        "--seconds", type=float, default=600, help="parts that would begin later are left out"
    )
    options = parser.parse_args()
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"--model is {str(options.model)!r}, which holds no config.json: give an HF folder.")
    if options.device == "cuda" and not _has_cuda():
        parser.error("torch finds no CUDA device on this machine; --device cpu --size tiny runs without one.")
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    began, factor = time.monotonic(), CPU_FACTOR if options.device == "cpu" else 1
    with options.out.open("w", encoding="utf-8") as out:

        def tell(line: Line) -> None:
            lines.append(line)
            for file in (out, sys.stdout):
                print(line.json(), file=file, flush=True)

        for part in chosen:
            left = factor * options.seconds - (time.monotonic() - began)
            slowed = replace(part, limit=factor * part.limit)
            tell(run_part(slowed, _arguments(part, options), left, tell))
    if options.device == "cuda":
        keep_last(lines)
        print(f"Figures are in {options.out}; the last of each part in {RESULTS.relative_to(REPO)}.")
    print(show(lines))
    return int(any(line.failed for line in lines))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _arguments(part: Part, options: argparse.Namespace) -> list[str]:
    given = ["--device", options.device, "--size", options.size]
    return [*given, "--model", str(options.model.resolve())] if part.takes_model and options.model else given


if __name__ == "__main__":
    sys.exit(main())
