"""``python -m rollout.problems``: prints what a run would understand of its data, before it is run.

    python -m rollout.problems data.path=problems.parquet data.eval_path=held_out.csv model.path=MODEL

It takes the options ``data``, ``rewards``, ``operator.prompts`` and ``model`` of a run. The exit status is 1
if a problem would be refused, occurs twice, is both a training and a held-out problem, or is an example of
the prompts.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from configs.compose import run
from configs.schema import ProblemsConfig, RolloutConfig
from rewards.build import gold_checker
from rewards.gold import parse_gold, spelling
from rollout.codec import Codec
from rollout.problems.duplicates import asked_in, held_out_in_training, repeated
from rollout.problems.reading import Reading, read, short
from rollout.problems.sources import eval_source, train_source
from rollout.prompts import PromptTexts, prompt_texts
from rollout.records import Problem
from rollout.tokenizer import load_codec
from rollout.turns import Turn


def main(config: ProblemsConfig, _overrides: list[str]) -> None:
    """Prints the report."""
    try:
        training, held_out = _readings(config)
        texts, codec = prompt_texts(config.operator.prompts), _codec(config)
    except (ValueError, OSError) as error:
        sys.exit(f"rollout.problems: {error}")
    is_clean = True
    for title, reading in (("Problems", training), ("Held-out problems", held_out)):
        if reading is None:
            print(f"\n{title}: none (data.eval_path, data.eval_split)")
            continue
        findings = list(_findings(reading, config.shown))
        print(f"\n{title}: {reading.name}", *_described(reading, texts, codec), *findings, sep="\n  ")
        is_clean = is_clean and not findings
    both = held_out_in_training(training.problems.values(), held_out.problems.values()) if held_out else []
    if both:
        print(f"\n{len(both)} held-out problems are training problems, too: {_ids(both, config.shown)}")
    problems = [*training.problems.values(), *(held_out.problems.values() if held_out else ())]
    if given := asked_in(problems, (example.question for example in texts.examples)):
        ids = _ids(given, config.shown)
        print(f"\n{len(given)} problems are examples (operator.prompts.examples), too: {ids}")
    if training.problems:
        system = config.operator.prompts.system
        first = next(iter(training.problems.values()))
        print("\n" + _first(first, system, texts, codec))
        if texts.refine_shots:
            print("\n" + _refinement(first, system, texts, codec))
    sys.exit(int(bool(both) or bool(given) or not is_clean))


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
    return load_codec(config.model, RolloutConfig(), config.operator.prompts)


def _described(reading: Reading, texts: PromptTexts, codec: Codec | None) -> Iterator[str]:
    problems = list(reading.problems.values())
    yield f"usable: {len(problems)} of {len(problems) + len(reading.dropped)}"
    if reading.columns:
        yield f"question: column {reading.columns.question}; gold answer: column {reading.columns.answer}"
    if reading.other_columns:
        yield f"columns not read: {', '.join(reading.other_columns)}"
    if reading.system:
        yield f"system prompt of the chats, not used (operator.prompts.system): {short(reading.system)}"
    kinds = Counter(_kind(problem.answer) for problem in problems)
    yield f"gold answers: {', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}"
    if problems and codec:
        lengths = {p.id: len(_ids_of(p, texts, codec)) for p in problems}
        longest = max(lengths, key=lambda name: lengths[name])
        mean = sum(lengths.values()) / len(lengths)
        yield f"prompt tokens: mean {mean:.0f}, most {lengths[longest]} ({longest})"
    elif problems:
        longest_one = max(problems, key=lambda problem: len(problem.question))
        yield f"longest question: {len(longest_one.question)} characters ({longest_one.id})"


def _ids_of(problem: Problem, texts: PromptTexts, codec: Codec) -> tuple[int, ...]:
    """Returns the prompt of a trace."""
    return codec.encode_prompt(texts.solve_text(problem.question), texts.shots)


def _kind(gold: str) -> str:
    try:
        return type(parse_gold(gold).shape).__name__.lower()
    except ValueError:  # of a task beside math, whose golds need not parse as mathematics
        return "other"


def _findings(reading: Reading, shown: int) -> Iterator[str]:
    for number, text in ((len(reading.dropped), "refused"), (len(reading.doubts), "doubtful")):
        reasons = reading.dropped if text == "refused" else reading.doubts
        if number:
            yield f"{text}: {number}; the first:"
            yield from (f"  {reason}" for reason in reasons[:shown])
    if groups := repeated(reading.problems.values()):
        ids = _ids([some[0] for some in groups], shown)
        yield f"questions that occur more than once: {len(groups)}; {ids}"
        conflicts = [some for some in groups if len({spelling(problem.answer) for problem in some}) > 1]
        if conflicts:
            yield f"  with different gold answers: {len(conflicts)}; the first:"
            for some in conflicts[:shown]:
                yield "    " + ", ".join(f"{problem.id}: {short(problem.answer)}" for problem in some)


def _ids(problems: Sequence[Problem], most: int) -> str:
    more = f", and {len(problems) - most} more" if len(problems) > most else ""
    return ", ".join(problem.id for problem in problems[:most]) + more


def _first(problem: Problem, system: str, texts: PromptTexts, codec: Codec | None) -> str:
    text, _ = _shown(system, texts.shots, texts.solve_text(problem.question), codec)
    how = "as the model reads it" if codec else "as text; model.path=FOLDER shows the model's chat template"
    return f"The first problem, {problem.id}, {how}:\n\n{text}\n\nIts gold answer: {problem.answer}"


def _refinement(problem: Problem, system: str, texts: PromptTexts, codec: Codec | None) -> str:
    asked = texts.refine_text(problem.question, "(workspace)")
    text, tokens = _shown(system, texts.refine_shots, asked, codec)
    size = f", {tokens} tokens" if codec else ""
    number = len(texts.refine_shots) // 2
    return f"Its refinement, with {number} worked ones before it{size} without its workspace:\n\n{text}"


def _shown(system: str, shots: Sequence[Turn], asked: str, codec: Codec | None) -> tuple[str, int]:
    """Returns a prompt as the model reads it, and its tokens; without a model as paragraphs, and 0."""
    if codec is None:
        return "\n\n".join(part for part in (system, *(turn.text for turn in shots), asked) if part), 0
    ids = codec.encode_prompt(asked, shots)
    # Not codec.decode, which leaves out an end of sequence at the end.
    return str(codec.tokenizer.decode(list(ids), skip_special_tokens=False)), len(ids)


if __name__ == "__main__":
    run("problems", main)
