"""``python -m rollout.problems``: prints what a run would understand of its data, before it is run.

    python -m rollout.problems data.path=problems.parquet data.eval_path=held_out.csv model.path=MODEL

It takes the options ``data``, ``rewards``, ``operator.prompts`` and ``model`` of a run. The exit status is 1
if a problem would be refused, occurs twice, or is both a training and a held-out problem.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from configs.compose import run
from configs.schema import ProblemsConfig
from rewards.build import gold_checker
from rewards.gold import parse_gold
from rollout.build import load_tokenizer
from rollout.problems.duplicates import held_out_in_training, repeated
from rollout.problems.reading import Reading, read, short
from rollout.problems.sources import eval_source, train_source
from rollout.prompt_probe import check_prompt
from rollout.prompts import Codec, PromptTexts, prompt_texts
from rollout.records import Problem

SHOWN = 3
"""Examples of each finding."""


def main(config: ProblemsConfig, _overrides: list[str]) -> None:
    """Prints the report."""
    try:
        training, held_out = _readings(config)
        codec = _codec(config)
    except (ValueError, OSError) as error:
        sys.exit(f"rollout.problems: {error}")
    texts = prompt_texts(config.operator.prompts)
    is_clean = True
    for title, reading in (("Problems", training), ("Held-out problems", held_out)):
        if reading is None:
            print(f"\n{title}: none (data.eval_path, data.eval_split)")
            continue
        findings = list(_findings(reading))
        print(f"\n{title}: {reading.name}", *_described(reading, texts, codec), *findings, sep="\n  ")
        is_clean = is_clean and not findings
    both = held_out_in_training(training.problems.values(), held_out.problems.values()) if held_out else []
    if both:
        print(f"\n{len(both)} held-out problems are training problems, too: {_ids(both)}")
    if training.problems:
        print("\n" + _first(next(iter(training.problems.values())), texts, codec))
    sys.exit(int(bool(both) or not is_clean))


def _readings(config: ProblemsConfig) -> tuple[Reading, Reading | None]:
    data, check_gold = config.data, gold_checker(config.rewards)
    # Problems that a run would refuse are dropped here, so that all of them are told at once.
    held_out = eval_source(data)
    return (
        read(train_source(data), data, check_gold, drops=True),
        read(held_out, data, check_gold, drops=True) if held_out else None,
    )


def _codec(config: ProblemsConfig) -> Codec | None:
    if not config.model.path:
        return None
    codec = Codec(tokenizer=load_tokenizer(config.model))
    check_prompt(codec, config.model.path)
    return codec


def _described(reading: Reading, texts: PromptTexts, codec: Codec | None) -> Iterator[str]:
    problems = list(reading.problems.values())
    yield f"usable: {len(problems)} of {len(problems) + len(reading.dropped)}"
    if reading.columns:
        yield f"question: column {reading.columns.question}; gold answer: column {reading.columns.answer}"
    if reading.other_columns:
        yield f"columns not read: {', '.join(reading.other_columns)}"
    if reading.system:
        yield f"system prompt of the chats, not used: {short(reading.system)}"
    kinds = Counter(_kind(problem.answer) for problem in problems)
    yield f"gold answers: {', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}"
    if problems and codec:
        lengths = {p.id: len(codec.encode_prompt(texts.solve_text(p.question))) for p in problems}
        longest = max(lengths, key=lambda name: lengths[name])
        mean = sum(lengths.values()) / len(lengths)
        yield f"prompt tokens: mean {mean:.0f}, most {lengths[longest]} ({longest})"
    elif problems:
        longest_one = max(problems, key=lambda problem: len(problem.question))
        yield f"longest question: {len(longest_one.question)} characters ({longest_one.id})"


def _kind(gold: str) -> str:
    try:
        return type(parse_gold(gold).shape).__name__.lower()
    except ValueError:  # of a task beside math, whose golds need not parse as mathematics
        return "other"


def _findings(reading: Reading) -> Iterator[str]:
    for number, text in ((len(reading.dropped), "refused"), (len(reading.doubts), "doubtful")):
        reasons = reading.dropped if text == "refused" else reading.doubts
        if number:
            yield f"{text}: {number}; the first:"
            yield from (f"  {reason}" for reason in reasons[:SHOWN])
    if groups := repeated(reading.problems.values()):
        yield f"questions that occur more than once: {len(groups)}; {_ids([some[0] for some in groups])}"
        conflicts = [some for some in groups if len({problem.answer for problem in some}) > 1]
        if conflicts:
            ids = ", ".join(f"{problem.id}: {short(problem.answer)}" for problem in conflicts[0])
            yield f"  with different gold answers: {len(conflicts)}; the first {ids}"


def _ids(problems: Sequence[Problem]) -> str:
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return ", ".join(problem.id for problem in problems[:SHOWN]) + more


def _first(problem: Problem, texts: PromptTexts, codec: Codec | None) -> str:
    text = texts.solve_text(problem.question)
    how = "as text; model.path=FOLDER shows the model's chat template"
    if codec:
        text = codec.tokenizer.decode(list(codec.encode_prompt(text)), skip_special_tokens=False)
        how = "as the model reads it"
    return f"The first problem, {problem.id}, {how}:\n\n{text}\n\nIts gold answer: {problem.answer}"


if __name__ == "__main__":
    run("problems", main)
