"""The page of a training run: ``page.html`` in its folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from configs.thinking import ThinkingMarks
from rollout.page.curves import POINTS, curves
from rollout.page.evaluation import JOURNAL_FILE, PAGE_FILE, decoder
from rollout.page.flags import Facts
from rollout.page.html import write_page
from rollout.page.journal import read_source
from rollout.page.options import option, read_options, shared_facts, thinking_marks
from rollout.page.recorded import RecordedCall, RecordedRollout, view
from rollout.page.report_file import read_report
from rollout.page.sources import SHARE_BYTES, evenly, source_views
from rollout.page.view import CreditView, Mark, Options, RolloutView, RunView, SourceView
from train.health.rollbacks import read_rollbacks
from train.health.rules import alarms_of
from train.health.summary import alarm_summary
from train.metrics_file import METRICS_FILE, read_metrics
from train.trace import TEXT_CHARACTERS, CallRecord, CreditRecord, read_trace, trace_path, traced_steps

STEPS = 12
"""Most traced steps whose rollouts are read."""
PHASES = 6
"""Most evaluations whose rollouts are read."""

Source = tuple[SourceView, list[RolloutView]]


def write_run_page(folder: Path) -> Path:
    """Writes ``page.html`` into the folder of a training run; returns its path.

    Raises:
        ValueError: If a file of the folder was not written by a training run of this version.
        OSError: If a file cannot be read or written.
    """
    return write_page(folder / PAGE_FILE, [training_view(folder, SHARE_BYTES)])


def training_view(folder: Path, limit: int, points: int = POINTS) -> RunView:
    """Returns what the page shows of a training run.

    Args:
        folder: Folder of the run.
        limit: Bytes of JSON that its rollouts may take.
        points: Most steps of its curves.

    Raises:
        ValueError, OSError: As ``write_run_page``.
    """
    options = read_options(folder)
    metrics = read_metrics(folder / METRICS_FILE)
    ignored = option(options, "train.ignored_alarms", [])
    marks = _marks(folder, metrics, ignored)
    report = read_report(folder)
    sources, notes = _sources(folder, options, limit)
    return RunView(
        name=folder.resolve().name,
        kind="training",
        facts=_facts(options, folder, metrics),
        warnings=report.warnings,
        alarms=tuple(alarm_summary(folder, ignored)),
        rows=report.rows,
        differences=report.differences,
        curves=curves(metrics, [mark.step for mark in marks], points),
        marks=marks,
        sources=tuple(source for source, _ in sources),
        rollouts=tuple(rollout for _, rollouts in sources for rollout in rollouts),
        notes=(*([report.note] if report.note else []), *notes),
    )


def _facts(options: Options, folder: Path, metrics: Sequence[Mapping[str, float]]) -> dict[str, str]:
    facts = shared_facts(options, folder)
    if dtype := option(options, "model.dtype"):
        facts["model"] += f", trained in {dtype}"
    last = int(metrics[-1]["step"]) if metrics else 0
    algo = option(options, "algo", {})
    facts["steps"] = f"{last} of {option(options, 'train.max_steps', last)}"
    sizes = {"problems per step": "problems_per_step", "samples per group": "num_generations"}
    parts = [str(algo.get("loss_type", "")), f"learning rate {algo.get('learning_rate')}"]
    parts += [f"{name} {algo[key]}" for name, key in sizes.items() if key in algo]
    if algo:
        facts["algorithm"] = ", ".join(parts)
    seconds = sum(line.get("time/step", 0.0) for line in metrics)
    if seconds:
        facts["time of all steps"] = f"{seconds / 60:.1f} min"
    return facts


def _marks(folder: Path, metrics: Sequence[Mapping[str, float]], ignored: Sequence[str]) -> tuple[Mark, ...]:
    alarms = [Mark(step=each.step, kind="alarm", text=str(each)) for each in alarms_of(metrics, ignored)]
    rollbacks = [Mark(step=each.to_step, kind="rollback", text=str(each)) for each in read_rollbacks(folder)]
    return (*alarms, *rollbacks)


def _sources(folder: Path, options: Options, limit: int) -> tuple[list[Source], list[str]]:
    """Returns the steps and evaluations whose rollouts the page holds, and notes on what it does not."""
    traced = traced_steps(folder)
    steps = evenly(traced, STEPS)
    journals = {path.parent.name: path for path in folder.glob(f"evaluation/*/{JOURNAL_FILE}")}
    between = sorted(name for name in journals if name.startswith("step_"))
    phases = [name for name in ("before", *between, "after") if name in journals]
    read = [phases[place] for place in evenly(range(len(phases)), PHASES)]
    notes: list[str] = []
    if not traced:
        notes.append(
            "There is no trace of training rollouts (groups/): train.trace_steps is 0, or no step ended."
        )
    elif len(steps) < len(traced):
        notes.append(f"Rollouts of {len(steps)} of {len(traced)} traced steps were read, evenly spaced.")
    if len(read) < len(phases):
        notes.append(f"Rollouts of {len(read)} of {len(phases)} evaluations were read, evenly spaced.")
    share = limit // max(1, len(steps) + len(read))
    marks, decode = thinking_marks(options), decoder(options, folder)
    if read and decode is None:
        notes.append("Prompts of evaluations are not shown: the tokenizer of the model was not found.")
    sources = [_step_source(folder, step, marks, share) for step in steps]
    sources += [
        read_source(journals[phase], f"evaluation {phase}", marks, decode, limit=share) for phase in read
    ]
    return sources, notes


def _step_source(folder: Path, step: int, marks: ThinkingMarks, limit: int) -> Source:
    rollouts = list(_recorded(read_trace(trace_path(folder, step)), f"step {step}"))
    facts: list[Facts] = [rollout.facts for rollout in rollouts]
    operators = [rollout.operator for rollout in rollouts]
    is_cut = any(len(call.text) >= TEXT_CHARACTERS for rollout in rollouts for call in rollout.calls)
    return source_views(
        f"step {step}",
        facts,
        operators,
        lambda place: view(rollouts[place], marks),
        limit=limit,
        note=f"of each text the trace holds the last {TEXT_CHARACTERS} characters" if is_cut else "",
    )


def _recorded(records: Iterable[CallRecord], source: str) -> Iterator[RecordedRollout]:
    """Yields the rollouts of a step; their calls are consecutive lines of the trace."""
    for _, group in groupby(records, key=lambda record: record.call_id.partition(".")[0]):
        calls = list(group)
        first = calls[0]
        places = {record.call_id: place for place, record in enumerate(calls)}
        yield RecordedRollout(
            source=source,
            operator=first.operator,
            problem=first.problem_id,
            question=first.question,
            gold=first.gold,
            calls=tuple(_call(record, places) for record in calls),
            prompts={record.context: record.prompt for record in calls},
        )


def _call(record: CallRecord, places: Mapping[str, int]) -> RecordedCall:
    return RecordedCall(
        role=record.role,
        round=record.round,
        parents=tuple(places[parent] for parent in record.parents),
        context=record.context,
        text=record.text,
        finish=record.finish,
        label=record.label,
        verdict=record.verdict,
        answer=record.answer,
        found_by=record.found_by,
        reason=record.reason,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        versions=tuple(span.version for span in record.versions),
        credit=None if record.credit is None else _credit(record.credit),
    )


def _credit(credit: CreditRecord) -> CreditView:
    return CreditView(
        reward=credit.reward,
        parts=credit.reward_parts,
        advantage=credit.advantage,
        group_size=credit.group_size,
        dropped=credit.dropped,
        trained_tokens=credit.update.trained_tokens if credit.update else None,
        loss=credit.update.loss if credit.update else None,
    )
