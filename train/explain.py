"""``python -m train.explain DIR --step N [--problem ID]``: why the calls of a step got their advantages.

Without ``--problem`` it lists the problems of the step. With one it prints its story: drafts and verdicts,
the workspace, refinements, rewards, baseline, advantages, and what each call contributed to the loss.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from rollout.records import ATTEMPTS
from train.loss.advantages import STD_EPSILON
from train.trace import FOLDER, CallRecord, read_trace, trace_path, traced_steps

SHOWN_CHARACTERS = 400
"""Characters shown of a text, from its end, unless ``--full`` is given."""


def problem_list(calls: Sequence[CallRecord]) -> str:
    """One line for each problem of a step: operators, rewards, how many advantages are not 0."""
    lines = ["problem: operator, credited calls, mean reward, calls with an advantage"]
    for problem in dict.fromkeys(call.problem_id for call in calls):
        of_problem = [call for call in calls if call.problem_id == problem]
        credits = [call.credit for call in of_problem if call.credit is not None]
        rewards = [credit.reward for credit in credits if credit.reward is not None]
        operators = ", ".join(dict.fromkeys(call.operator for call in of_problem))
        mean = f"{fmean(rewards):+.3g}" if rewards else "-"
        moved = sum(bool(credit.advantage) for credit in credits)
        lines.append(f"  {problem}: {operators}, {len(credits)}, {mean}, {moved}")
    return "\n".join(lines)


def story(calls: Sequence[CallRecord], algo: Mapping[str, Any], *, characters: int | None) -> str:
    """What happened to one problem in one step.

    Args:
        calls: Of that problem, at least one.
        algo: The run's ``algo`` options, for the formula of the advantage.
        characters: Shown of each text, from its end; None shows all that was kept.
    """
    first = calls[0]
    lines = [f"problem {first.problem_id}: {first.question}", f"gold answer: {first.gold}"]
    rollouts: dict[str, list[CallRecord]] = {}
    for call in calls:
        rollouts.setdefault(call.call_id.split(".")[0], []).append(call)
    for number, of_rollout in rollouts.items():
        lines += ["", f"== rollout {number}, operator {of_rollout[0].operator}"]
        lines += _rollout_lines(of_rollout, algo, characters)
    return "\n".join(lines)


def _rollout_lines(
    calls: Sequence[CallRecord], algo: Mapping[str, Any], characters: int | None
) -> Iterator[str]:
    """Its calls, by round and by the prompt that they share."""
    contexts: dict[tuple[int, str, str], list[CallRecord]] = {}
    for call in calls:
        contexts.setdefault((call.round, call.role, call.context), []).append(call)
    for (round, role, context), sharing in contexts.items():
        parents = sharing[0].parents
        reads = f"reads calls {', '.join(parents)}" if parents else "reads the plain problem"
        yield f"-- round {round}, {role}: {len(sharing)} calls, prompt {context}, which {reads}"
        if parents:
            yield _quote("end of the prompt", sharing[0].prompt, characters)
        for call in sharing:
            yield from _call_lines(call, characters)
        yield from _group_lines(sharing, algo)


def _call_lines(call: CallRecord, characters: int | None) -> Iterator[str]:
    verdict = f", {call.verdict}, answer {call.answer}" if call.role in ATTEMPTS else ""
    versions = "+".join(str(span.version) for span in call.versions)
    yield (
        f"   call {call.call_id}: {call.prompt_tokens}+{call.completion_tokens} tokens, "
        f"policy version {versions}, {call.finish}, {call.label}{verdict}"
    )
    yield _quote("end of the completion", call.text, characters)


def _quote(what: str, text: str, characters: int | None) -> str:
    shown = text if characters is None else text[-characters:]
    return "\n".join([f"      [{what}]", *(f"      | {line}" for line in shown.splitlines())])


def _group_lines(calls: Sequence[CallRecord], algo: Mapping[str, Any]) -> Iterator[str]:
    """The group that these calls are, if they were credited: its baseline, then a line for each call."""
    credited = [(call, call.credit) for call in calls if call.credit is not None]
    if not credited:
        yield "   not credited: these calls are read by others and not trained on"
        return
    rewards = [credit.reward for _, credit in credited if credit.reward is not None]
    deviation = stdev(rewards) if len(rewards) > 1 else 0.0
    yield f"   group of {len(rewards)}: mean reward {fmean(rewards):.4g}, standard deviation {deviation:.4g}"
    reason = credited[0][1].dropped
    if reason is not None:
        yield f"   dropped before training: {reason}"
    elif len(set(rewards)) == 1:
        yield "   all rewards are equal, so every advantage is 0"
    else:
        yield f"   {_formula(calls[0].role, algo)}"
    for call, credit in credited:
        parts = " ".join(f"{name}={value:.3g}" for name, value in credit.reward_parts.items())
        advantage = "-" if credit.advantage is None else f"{credit.advantage:+.4g}"
        reward = f"{_number(credit.reward)} ({parts or 'one term'})"
        yield f"   {call.call_id}: reward {reward}, advantage {advantage}"
        if (update := credit.update) is not None:
            yield (
                f"      {update.trained_tokens} tokens trained, mean advantage "
                f"{_number(update.advantage, '+')}; weight of a token {update.policy_weight:.3g} (policy), "
                f"{update.imitation_weight:.3g} (imitation); "
                f"log-prob {_number(call.sampler_logprob)} (sampler), "
                f"{_number(update.trainer_logprob)} (trainer); "
                f"loss {_number(update.loss, '+')}"
            )
        elif reason is None:
            yield "      left out of the update: it cannot move the policy"


def _number(value: float | None, sign: str = "") -> str:
    return "not finite" if value is None else f"{value:{sign}.4g}"


def _formula(role: str, algo: Mapping[str, Any]) -> str:
    """How the group's advantages follow from its rewards."""
    pass_at_k = role == "draft" and algo["draft_credit"] == "pass_at_k"
    estimator = "pass_at_k" if pass_at_k else algo["advantage_estimator"]
    center = {
        "group_mean": "reward - mean of the group",
        "leave_one_out": "reward - mean of the others",
        "pass_at_k": f"gradient weight of the best of {algo['pass_k']} (train.loss.advantages.pass_at_k)",
    }[estimator]
    scale = {
        "group": f" / (standard deviation of the group + {STD_EPSILON:g})",
        "batch": f" / (standard deviation of all {role} rewards of the step + {STD_EPSILON:g})",
        "none": "",
    }[algo["scale_rewards"]]
    return f"advantage = ({center}){scale}" if scale else f"advantage = {center}"


def explain(folder: Path, step: int, problem: str | None, *, characters: int | None) -> str:
    """The text of the command.

    Raises:
        FileNotFoundError: If the run has no trace of ``step``; names those it has.
        ValueError: If no call of the step is on ``problem``.
    """
    path = trace_path(folder, step)
    if not path.is_file():
        steps = traced_steps(folder)
        there = f"it has steps {steps[0]} to {steps[-1]}" if steps else "it has none (see train.trace_steps)"
        raise FileNotFoundError(f"{folder / FOLDER} has no trace of step {step}; {there}.")
    calls = read_trace(path)
    if problem is None:
        return problem_list(calls)
    of_problem = [call for call in calls if call.problem_id == problem]
    if not of_problem:
        raise ValueError(
            f"No call of step {step} is on problem {problem!r}. Leave out --problem to list them."
        )
    algo = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["algo"]
    return story(of_problem, algo, characters=characters)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m train.explain", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's output_dir")
    parser.add_argument("--step", type=int, required=True, help="from 1")
    parser.add_argument("--problem", help="a problem's id; without it the step's problems are listed")
    parser.add_argument("--full", action="store_true", help="show all of the text that was kept")
    options = parser.parse_args()
    characters = None if options.full else SHOWN_CHARACTERS
    try:
        print(explain(options.folder, options.step, options.problem, characters=characters), flush=True)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"explain: {error}")
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
