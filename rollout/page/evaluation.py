"""The page of an evaluation: ``page.html`` in the folder that ``python -m rollout`` writes."""

from pathlib import Path

from rollout.page.html import write_page
from rollout.page.journal import Decode, read_source
from rollout.page.options import operator_name, option, read_options, shared_facts, thinking_marks
from rollout.page.report_file import read_report
from rollout.page.sources import SHARE_BYTES
from rollout.page.tokenizer import find_decoder
from rollout.page.view import Options, RunView

PAGE_FILE = "page.html"
JOURNAL_FILE = "rollouts.jsonl"


def write_evaluation_page(folder: Path) -> Path:
    """Writes ``page.html`` into the folder of an evaluation; returns its path.

    Raises:
        ValueError: If a file of the folder was not written by an evaluation of this version.
        OSError: If a file cannot be read or written.
    """
    return write_page(folder / PAGE_FILE, [evaluation_view(folder, SHARE_BYTES)])


def evaluation_view(folder: Path, limit: int) -> RunView:
    """Returns what the page shows of an evaluation.

    Args:
        folder: Folder with ``rollouts.jsonl``.
        limit: Bytes of JSON that its rollouts may take.

    Raises:
        ValueError, OSError: As ``write_evaluation_page``.
    """
    options = read_options(folder)
    report = read_report(folder)
    decode = decoder(options, folder)
    source, rollouts = read_source(
        folder / JOURNAL_FILE, "evaluation", thinking_marks(options), decode, limit=limit
    )
    facts = shared_facts(options, folder)
    operators = option(options, "operators") or []
    if operators:
        facts["operators"] = "; ".join(map(operator_name, operators))
    facts["samples per problem"] = str(option(options, "samples", ""))
    if report.failed:
        facts["failed rollouts"] = str(report.failed)
    notes = [report.note] if report.note else []
    if decode is None:
        notes.append("Prompts are not shown: the tokenizer of the model was not found.")
    return RunView(
        name=folder.resolve().name,
        kind="evaluation",
        facts={name: value for name, value in facts.items() if value},
        warnings=report.warnings,
        alarms=report.alarms,
        rows=report.rows,
        differences=report.differences,
        sources=(source,),
        rollouts=tuple(rollouts),
        notes=tuple(notes),
    )


def decoder(options: Options, folder: Path) -> Decode | None:
    """Returns the decoder of a run's prompts, see ``find_decoder``."""
    return find_decoder(str(option(options, "model.path", "")), folder)
