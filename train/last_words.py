"""What a run prints last: its report, where its files are, and the command that comes next."""

import shlex
from pathlib import Path

from configs.run_folder import CHECKPOINTS
from configs.schema import TrainingConfig
from rollout.evaluation.pareto import draw_pareto
from rollout.evaluation.report import write_report
from rollout.page.at_end import try_write
from train.checkpoint_files import finished_checkpoints
from train.evaluation import run_report
from train.page import write_run_page

FILES = (
    "report.md",
    "curves.png",
    "pareto.png",
    "metrics.jsonl",
    "evaluation",
    "rollouts",
    "groups",
)
"""What there is to look into, in the order of interest."""


def last_words(config: TrainingConfig) -> str:
    """Writes report, picture and page of the run; returns the text, and the paths and commands after it."""
    folder = Path(config.output_dir)
    report = run_report(config)
    text = write_report(folder, report)
    if report.rows:
        # Earlier rows first. Those in between would hide the two.
        ends = {report.rows[0].phase, report.rows[-1].phase}
        draw_pareto([row for row in report.rows if row.phase in ends], folder / "pareto.png")
    page = try_write(write_run_page, folder)
    names = [f"{name}/" if (folder / name).is_dir() else name for name in FILES if (folder / name).exists()]
    lines = [text.rstrip("\n"), "", f"Written to {folder}: {', '.join(names)}", page]
    whole = finished_checkpoints(folder / CHECKPOINTS)
    if not whole:
        lines.append("There is no checkpoint.")
    else:
        target = shlex.join([str(folder), str(folder / "export")])
        lines += [f"Newest checkpoint: {whole[-1]}", f"Export it: python -m train.export {target}"]
    return "\n".join(lines)
