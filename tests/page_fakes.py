"""Folders as evaluations and training runs leave them, with rollouts whose texts a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml
from fakes import CODEC, Scored

from configs.thinking import ThinkingMarks
from rollout.evaluation.journal import rollout_to_json
from rollout.evaluation.outcomes import reduce
from rollout.records import DRAFT, REFINE, Call, Problem, Rollout, Usage

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</script><script>document.title = 'owned'</script><!--",
    "<img src=x onerror=\"document.title = 'owned'\"><svg onload=\"document.title = 'owned'\">",
    "right to left \u202e gnitset \u202c and marks \u200f\u2067 \u2028 \u2029 \u0007 \ufeff",
    "x" * 100_000,
    r"$\frac{1}{$ \(\undefinedmacro{ \) $$\href{javascript:document.title='owned'}{here}$$ \boxed{\boxed{",
    r"$\def\a{\a\a}\a$ \(\rule{9999em}{9999em}\) $" + "{" * 400 + "}" * 400 + "$",
    "{{data}} {{scripts}} \\u003c/script\\u003e <!--<script>",
)
"""Texts that break out of an element, run a script, turn the direction, or do not end."""


def call(role: str, text: str, *, parents: Sequence[int] = (), round: int = 0, prompt: str = "") -> Call:
    """A call whose prompt is ``prompt``."""
    prompt_ids = tuple(CODEC.tokenizer(prompt or "SOLVE", add_special_tokens=False).input_ids)
    ids = tuple(CODEC.tokenizer(text, add_special_tokens=False).input_ids)
    return Call(
        role=role,
        round=round,
        parents=tuple(parents),
        prompt_ids=prompt_ids,
        completion_ids=ids,
        sampler_logprobs=(),
        train_mask=(True,) * len(ids),
        versions=(),
        finish="stop",
        text=text,
        label="ok",
        usage=Usage(prompt_tokens=len(prompt_ids), completion_tokens=len(ids)),
        seconds=0.1,
    )


def rollout(
    name: str, drafts: Sequence[tuple[str, bool]], answer: tuple[str, bool], *, question: str = ""
) -> Rollout:
    """A PDR rollout: drafts, a workspace that holds all of their texts, and one refinement."""
    question = question or f"question {name}"
    workspace = "\n\n".join(f"Draft {i}:\n{text}" for i, (text, _) in enumerate(drafts, start=1))
    calls = [call(DRAFT, f"<think>hm</think>{text}", prompt=f"SOLVE {question}") for text, _ in drafts]
    calls.append(
        call(
            REFINE,
            f"<think>thought of {name}</think>{answer[0]}",
            parents=range(len(drafts)),
            round=1,
            prompt=f"REFINE {question} WORKSPACE {workspace} END",
        )
    )
    right = [is_right for _, is_right in drafts] + [answer[1]]
    return Rollout(
        problem=Problem(id=name, question=question, answer="7"),
        operator="pdr",
        calls=tuple(calls),
        answers=(len(drafts),),
        verdicts={
            place: Scored(status="correct" if is_right else "wrong", answer="7", is_correct=is_right)
            for place, is_right in enumerate(right)
        },
    )


def write_evaluation(folder: Path, rollouts: Sequence[Rollout]) -> Path:
    """Writes what ``python -m rollout`` leaves: journal, config, report, and the model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    CODEC.tokenizer.save_pretrained(folder / "policy")
    write_journal(folder / "rollouts.jsonl", rollouts)
    options = {"model": {"path": str(folder / "policy")}, "operators": ["trace", {"pdr": {"top_k": 2}}]}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    (folder / "report.json").write_text(json.dumps(report([("", 0.5)])))
    return folder


def write_journal(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Writes ``rollouts.jsonl``, whose last line a kill has cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        msgspec.json.encode(rollout_to_json(reduce(each, sample, ThinkingMarks()), each)).decode()
        for sample, each in enumerate(rollouts)
    ]
    path.write_text("\n".join(['{"identity":{}}', *lines, lines[0][:40]]), encoding="utf-8")


def report(phases: Sequence[tuple[str, float]]) -> dict:
    """The content of a report with one row of ``pdr`` for each phase with its accuracy."""
    rows = [
        {"operator": "pdr", "phase": phase, "round": 1, "final": True, "problems": 4, "samples": 1}
        | {"accuracy": accuracy, "ci_low": accuracy - 0.1, "ci_high": accuracy + 0.1}
        | {"b_seq": 50.0, "b_total": 100.0 + 10 * place, "truncated": 0.0, "no_answer": 0.0, "width": 1}
        for place, (phase, accuracy) in enumerate(phases)
    ]
    change = {"a": "pdr after", "b": "pdr before", "problems": 4}
    change |= {"difference": 0.25, "ci_low": 0.1, "ci_high": 0.4}
    differences = [change] if len(phases) > 1 else []
    return {"warnings": [], "rows": rows, "differences": differences, "run": {"failed": 0}, "alarms": []}
