"""``python -m train.report_page DIR [DIR2 ...] [--out FILE]``: writes the run page, one HTML file.

DIR is the folder of a training run or of an evaluation; several are laid over one another. The file needs no
server and no network: open it in a browser. Without ``--out`` it is ``DIR/page.html``, of the first folder.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rollout.page.curves import POINTS
from rollout.page.evaluation import JOURNAL_FILE, PAGE_FILE, evaluation_view
from rollout.page.html import write_page
from rollout.page.sources import SHARE_BYTES
from rollout.page.view import RunView
from train.metrics_file import METRICS_FILE
from train.page import training_view


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, writes the page and prints its path and size."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="train.report_page", description=summary, epilog=details)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="folder of a run or evaluation")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file to write (default: DIR/page.html)")
    options = parser.parse_args(arguments)
    out = options.out or options.folders[0] / PAGE_FILE
    try:
        written = write_page(out, views(options.folders))
    except (ValueError, OSError) as error:
        sys.exit(f"train.report_page: {error}")
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")


def views(folders: Sequence[Path]) -> list[RunView]:
    """Returns what a page shows of each folder; they share the page's space evenly.

    Raises:
        ValueError: If a folder holds neither a training run nor an evaluation, or a file that this version
            cannot read.
    """
    share, points = SHARE_BYTES // len(folders), max(100, POINTS // len(folders))
    names = _distinct_names(folders)
    return [
        replace(_view(folder, share, points), name=name) for folder, name in zip(folders, names, strict=True)
    ]


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """Returns the ends of the paths that tell the folders apart; the whole paths if one is named twice."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _view(folder: Path, limit: int, points: int) -> RunView:
    if (folder / METRICS_FILE).is_file() or (folder / "evaluation").is_dir():
        return training_view(folder, limit, points)
    if (folder / JOURNAL_FILE).is_file():
        return evaluation_view(folder, limit)
    raise ValueError(
        f"{folder} holds neither {METRICS_FILE} (a training run) nor {JOURNAL_FILE} (an evaluation). Name "
        "the output_dir of python -m train or of python -m rollout."
    )


if __name__ == "__main__":
    main()
