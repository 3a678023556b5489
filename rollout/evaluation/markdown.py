"""Writes the report as Markdown tables, each with a note that defines its columns."""

from collections.abc import Iterable, Mapping, Sequence

from rollout.evaluation.alarms import MAX_SHARE, alarms
from rollout.evaluation.findings import MARGIN, MATCHED, Finding, findings
from rollout.evaluation.report_rows import Difference, ReportRow, short_name
from rollout.evaluation.tables import markdown_table, percent, percent_interval
from rollout.evaluation.transitions import Stratum, Transition
from rollout.sources import COUNTED


def markdown(
    rows: Sequence[ReportRow],
    differences: Sequence[Difference],
    *,
    failed: int = 0,
    reasons: Mapping[str, int] | None = None,
    measures: Mapping[str, float] | None = None,
) -> str:
    """Returns the whole text. Parts without data are left out; without any row it is one sentence."""
    parts = [
        _alarms(rows),
        _accuracy(rows) if rows else "No evaluation was made, so there is nothing to report.",
        _sources(rows),
        _votes(rows),
        _transitions(rows),
        _given_drafts(rows),
        _labels(rows) if rows else "",
        _findings(findings(rows, differences)),
        _judge(measures or {}),
        _failures(failed, reasons or {}),
    ]
    return "\n\n".join(part for part in parts if part)


def _alarms(rows: Sequence[ReportRow]) -> str:
    lines = [f"* {line}" for line in alarms(rows)]
    head = f"**Warning: the numbers below mean little**, for more than {100 * MAX_SHARE:.0f}% are affected:"
    note = (
        "An attempt without an answer counts as wrong. Let the prompt ask for a form of answer that "
        "rewards.forms accepts, and look at what the policy wrote (rollouts.jsonl)."
    )
    if any((row.truncated or 0) > MAX_SHARE for row in rows):
        note = (
            "An attempt that is cut off counts as wrong: raise rollout.max_completion_length (and "
            "rollout.max_model_len)."
        )
    return "\n".join([head, "", *lines, "", note]) if lines else ""


def _accuracy(rows: Sequence[ReportRow]) -> str:
    with_phase = any(row.phase for row in rows)
    with_reward = any(row.mean_reward is not None for row in rows)
    head = ["operator", *(["phase"] if with_phase else []), "problems x samples", "accuracy % [95% interval]"]
    head += ["mean reward"] if with_reward else []
    head += ["maj@n %", "pass@n %", "B_seq", "B_total", "seconds"]
    lines = []
    for row in rows:
        line = [name(row), *([row.phase] if with_phase else []), f"{row.problems} x {row.samples}"]
        line.append(percent_interval(row.accuracy, row.ci_low, row.ci_high))
        if with_reward:
            line.append("" if row.mean_reward is None else f"{row.mean_reward:.3f}")
        line += [_last(row.maj_at), _last(row.pass_at), f"{row.b_seq:.0f}", f"{row.b_total:.0f}"]
        line.append("" if row.whole is None or row.whole.seconds is None else f"{row.whole.seconds:.2f}")
        lines.append(line)
    note = (
        "accuracy: mean over problems and samples, with a bootstrap interval over problems, widened by "
        "Wilson's bound on unseen problems. maj@n, pass@n: n attempts of one problem vote, or need one right "
        "among them. B_seq: tokens in + out on the longest chain of calls (latency); B_total: of all calls "
        "(cost); both per rollout. seconds: wall time of one rollout while it shared the endpoint with the "
        "others."
    )
    if with_reward:
        note += (
            " mean reward: mean over attempts of the number that the reward function returned. An attempt "
            "with a number above 0 counts as right, here and in every other table."
        )
    return "\n".join([*markdown_table(head, lines), "", note])


def _sources(rows: Sequence[ReportRow]) -> str:
    lines = []
    for row in rows:
        counts = row.whole.counts if row.whole is not None else {}
        for name in counts:
            if name.startswith(COUNTED):
                cut = counts.get("workspace/truncated", 0)
                lines.append(
                    f"* {_named(row)}: operator.source is {name.removeprefix(COUNTED)}, so its calls read "
                    f"thoughts of earlier ones. Workspaces cut to operator.workspace_tokens: {cut:.1f} per "
                    "rollout."
                )
    return "\n".join(["Operators that read raw thoughts:", "", *lines]) if lines else ""


def _votes(rows: Sequence[ReportRow]) -> str:
    lines = [
        [short_name(row), ", ".join(vote.matched_to), str(vote.traces), str(vote.drawn)]
        for row in rows
        if (vote := row.vote) is not None
    ]
    if not lines:
        return ""
    head = ["majority voting at matched cost", "matched to", "traces of each problem", "of these drawn"]
    note = (
        "As many traces vote as one rollout's mean B_total buys; mean over all windows of this many "
        "neighbours among the traces of each problem. Some are drawn for the vote, the others were made "
        "anyway. "
        "Mathematically equivalent answers vote as one; a tie counts as the mean of the tied answers."
    )
    return "\n".join([*markdown_table(head, lines), "", note])


def _transitions(rows: Sequence[ReportRow]) -> str:
    head = ["round", "some draft right % (pass@M)", "right when all drafts were wrong %"]
    head += ["when at most half were right %", "when more than half were right %"]
    head += ["wrong to right", "right to wrong"]
    head += ["copied a draft", "followed the drafts' majority"]
    lines = []
    for row in rows:
        step = row.transition
        if step is None:
            continue
        lines.append(
            [
                _named(row),
                percent(step.drafts_pass_at_width),
                _stratum(step.all_wrong),
                _stratum(step.minority_right),
                _stratum(step.majority_right),
                percent(step.wrong_to_right),
                percent(step.right_to_wrong),
                percent(step.copy_rate),
                percent(step.majority_follow_rate),
            ]
        )
    if not lines:
        return ""
    note = (
        "Each round compared with the attempts before it (drafts). In brackets: 95% interval, rollouts, and "
        "the accuracy of fresh traces on the same problems. wrong to right minus right to wrong is the gain "
        "of the round, in points. An empty cell: it never happened."
    )
    return "\n".join([*markdown_table(head, lines), "", note])


def _given_drafts(rows: Iterable[ReportRow]) -> str:
    steps = [(row, row.transition) for row in rows if row.transition is not None and _is_wide(row.transition)]
    if not steps:
        return ""
    counts = sorted({given.right_drafts for _, step in steps for given in step.right_given_drafts})
    lines = []
    for row, step in steps:
        known = {given.right_drafts: given for given in step.right_given_drafts}
        cells = [f"{percent(known[c].accuracy)} ({known[c].attempts})" if c in known else "" for c in counts]
        lines.append([_named(row), *cells])
    head = ["% right, given right drafts:", *map(str, counts)]
    return "\n".join(
        [*markdown_table(head, lines), "", "In brackets: attempts. An empty cell: it never happened."]
    )


def _is_wide(step: Transition) -> bool:
    return any(given.right_drafts > 1 for given in step.right_given_drafts)


def _labels(rows: Sequence[ReportRow]) -> str:
    labels = sorted({label for row in rows for label in row.labels}, key=lambda label: (label != "ok", label))
    head = ["attempts by label %", *labels, "ran into the token limit"]
    lines = [
        [_named(row), *(percent(row.labels.get(label)) for label in labels), percent(row.truncated)]
        for row in rows
    ]
    return "\n".join(markdown_table(head, lines))


def _findings(found: Sequence[Finding]) -> str:
    others = [item for item in found if item.is_main and not (item.at_cost or item.at_latency)]
    parts = [
        *_pairs("At matched cost (B_total)", [item for item in found if item.at_cost]),
        *_pairs("At matched latency (B_seq)", [item for item in found if item.at_latency]),
        *_pairs("At other budgets", others),
    ]
    if not parts:
        return ""
    note = (
        "a - b: paired difference of accuracies, in points, with a bootstrap interval over problems. Better: "
        f"the interval is clear of 0. Equal: it lies within {100 * MARGIN:.0f} points on both sides of 0. "
        f"Otherwise the comparison was not fine enough. Matched: within a factor of {MATCHED}; for cost the "
        "vote that was matched to the operator, for latency the widest vote that is not slower, since a vote "
        "grows without latency. x: budget of a over that of b."
    )
    return "\n\n".join([*parts, note])


def _pairs(title: str, found: Sequence[Finding]) -> list[str]:
    lines = []
    for item in found:
        each = item.difference
        points = percent_interval(each.difference, each.ci_low, each.ci_high, sign="+")
        ratios = [f"x {item.b_total_ratio:.2f}", f"x {item.b_seq_ratio:.2f}"]
        lines.append([f"{item.a} - {item.b}", points, *ratios, item.sentence])
    head = [f"{title}: a - b", "points [95% interval]", "B_total", "B_seq", "finding"]
    return ["\n".join(markdown_table(head, lines))] if lines else []


def _judge(measures: Mapping[str, float]) -> str:
    """Returns what a judging model cost, and how often it agrees with the rules."""
    spent = {
        name: int(measures.get(f"judge/{name}", 0))
        for name in ("requests", "prompt_tokens", "completion_tokens", "failed", "compared", "agreed")
    }
    if not spent["requests"]:
        return ""
    cost = (
        f"The judging model: {spent['requests']} requests, {spent['prompt_tokens']} prompt tokens, "
        f"{spent['completion_tokens']} completion tokens; {spent['failed']} answers got no verdict. Equal "
        "answers to one question are judged once. No budget above includes it."
    )
    if not spent["compared"]:
        return f"{cost} The rules had a verdict on none of these answers."
    share = percent(spent["agreed"] / spent["compared"])
    return (
        f"{cost} It agrees with the rules on {spent['agreed']} of {spent['compared']} answers on which both "
        f"have a verdict ({share}%)."
    )


def _failures(failed: int, reasons: Mapping[str, int]) -> str:
    if not failed:
        return ""
    lines = [f"* {count} x {reason}" for reason, count in reasons.items()]
    head = f"{failed} rollouts failed and are in no number above; the same command retries them."
    return "\n".join([head, "", *lines])


def name(row: ReportRow) -> str:
    """Returns the operator's name for its answer; for an earlier round also the round and its attempts."""
    if row.final:
        return row.operator
    attempts = "1 attempt" if row.width == 1 else f"{row.width} attempts"
    return f"- {row.operator} round {row.round + 1}: {attempts}"


def _named(row: ReportRow) -> str:
    return f"{name(row)} {row.phase}".rstrip()


def _stratum(stratum: Stratum | None) -> str:
    if stratum is None:
        return ""
    trace = "" if stratum.trace is None else f"; trace {percent(stratum.trace)}"
    interval = percent_interval(stratum.accuracy, stratum.ci_low, stratum.ci_high)
    return f"{interval} ({stratum.rollouts}{trace})"


def _last(by_k: Mapping[str, float]) -> str:
    """Returns the number for the largest k, with that k."""
    if not by_k:
        return ""
    k = max(by_k, key=int)
    return f"{percent(by_k[k])} (n={k})"
