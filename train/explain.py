"""``python -m train.explain DIR --step N [--problem ID | --call ID]``: why calls got their advantages.

Without either option it lists the problems of the step. With ``--problem`` it prints the problem's rollouts:
drafts and verdicts, the workspace, refinements, rewards, baseline, advantages, and each call's contribution
to the loss. With ``--call`` it prints the rollout of that call.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from rollout.records import AMORTISE, ATTEMPTS, OWN
from train.loss.advantages import STD_EPSILON
from train.trace import FOLDER, CallRecord, CreditRecord, read_trace, trace_path, traced_steps

SHOWN_CHARACTERS = 400
"""Number of characters shown from the end of a text, unless ``--full`` is given."""


def problem_list(calls: Sequence[CallRecord]) -> str:
    """Returns one line per problem of a step: operators, credited calls, mean reward, nonzero advantages."""
    lines = ["problem: operator, credited calls, mean reward, calls with an advantage"]
    for problem in dict.fromkeys(call.problem_id for call in calls):
        of_problem = [call for call in calls if call.problem_id == problem]
        # An amortised answer is in the list as the answer that it is.
        credits = [c.credit for c in of_problem if c.credit is not None and c.role != AMORTISE]
        rewards = [credit.reward for credit in credits if credit.reward is not None]
        operators = ", ".join(dict.fromkeys(call.operator for call in of_problem))
        mean = f"{fmean(rewards):+.3g}" if rewards else "-"
        moved = sum(bool(credit.advantage) for credit in credits)
        lines.append(f"  {problem}: {operators}, {len(credits)}, {mean}, {moved}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a story is told."""

    algo: Mapping[str, Any]
    """The run's ``algo`` options, for the formula of the advantage."""
    teacher: str
    """The teacher of ``algo.opd_coef``, in words."""
    batch_std: Mapping[str, float]
    """Standard deviation of all trained groups' rewards in the step, by role."""
    characters: int | None
    """Number of characters shown from the end of each text; None shows all that was stored."""


def story(calls: Sequence[CallRecord], style: Style) -> str:
    """Returns the text that describes one problem's rollouts in one step; ``calls`` holds at least one."""
    first = calls[0]
    lines = [f"problem {first.problem_id}: {first.question}", f"gold answer: {first.gold}"]
    rollouts: dict[str, list[CallRecord]] = {}
    for call in calls:
        rollouts.setdefault(call.call_id.split(".")[0], []).append(call)
    for number, of_rollout in rollouts.items():
        lines += ["", f"== rollout {number}, operator {of_rollout[0].operator}"]
        lines += _rollout_lines(of_rollout, style)
    return "\n".join(lines)


def _rollout_lines(calls: Sequence[CallRecord], style: Style) -> Iterator[str]:
    """Yields the calls of one rollout, by round, role and shared prompt."""
    plain = {call.context for call in calls if not call.parents}
    contexts: dict[tuple[int, str, str], list[CallRecord]] = {}
    for call in calls:
        contexts.setdefault((call.round, call.role, call.context), []).append(call)
    for (round, role, context), sharing in contexts.items():
        parents = sharing[0].parents
        reads = f"reads calls {', '.join(parents)}" if parents else "reads the plain problem"
        if role == AMORTISE:
            answers = ", ".join(parent for call in sharing for parent in call.parents)
            reads = f"reads the plain problem: the answers {answers} as its samples"
        elif parents and context in plain:  # the fallback of an empty workspace
            reads = f"reads the plain problem: no usable solution in calls {', '.join(parents)}"
        yield f"-- round {round}, {role}: {len(sharing)} calls, prompt {context}, which {reads}"
        if parents:
            yield _quote("end of the prompt", sharing[0].prompt, style.characters)
        for call in sharing if role != AMORTISE else ():  # shown above, as answers
            yield from _call_lines(call, style.characters)
        yield from _group_lines(sharing, style)


def _call_lines(call: CallRecord, characters: int | None) -> Iterator[str]:
    verdict = f", {call.verdict}, answer {call.answer}" if call.role in ATTEMPTS else ""
    versions = "+".join(str(span.version) for span in call.versions)
    wrote = f"policy version {versions}" if call.policy == OWN else f"by the policy {call.policy}"
    yield (
        f"   call {call.call_id}: {call.prompt_tokens}+{call.completion_tokens} tokens, "
        f"{wrote}, {call.finish}, {call.label}{verdict}"
    )
    yield _quote("end of the completion", call.text, characters)


def _quote(what: str, text: str, characters: int | None) -> str:
    shown = text if characters is None else text[-characters:]
    return "\n".join([f"      [{what}]", *(f"      | {line}" for line in shown.splitlines())])


def _group_lines(calls: Sequence[CallRecord], style: Style) -> Iterator[str]:
    """Yields the baseline of the group that these calls form, then a line per call."""
    credited = [(call, call.credit) for call in calls if call.credit is not None]
    if not credited:
        yield "   not credited: other calls read these calls, but they are not trained on"
        return
    if calls[0].role == AMORTISE:
        yield f"   imitated with algo.amortise_coef {style.algo['amortise_coef']:g}: no baseline and no ratio"
        yield from _credit_lines(credited, style)
        return
    rewards = [credit.reward for _, credit in credited if credit.reward is not None]
    deviation = stdev(rewards) if len(rewards) > 1 else 0.0
    spread = f"standard deviation (n - 1) {deviation:.4g}"
    yield f"   group of {len(rewards)}: mean reward {fmean(rewards):.4g}, {spread}"
    reason = credited[0][1].dropped
    if reason is not None:
        yield f"   dropped before training: {reason}"
    elif len(rewards) == 1:
        yield "   no other call read this prompt: there is no baseline, so the advantage is 0"
    elif len(set(rewards)) == 1:
        yield "   all rewards are equal, so every advantage is 0"
    else:
        yield f"   {_formula(calls[0].role, style)}"
    yield from _credit_lines(credited, style)


def _credit_lines(credited: Sequence[tuple[CallRecord, CreditRecord]], style: Style) -> Iterator[str]:
    """Yields the lines of each call: reward, advantage and its part of the update."""
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
                f"summed log-prob {_number(call.sampler_logprob)} (sampler), "
                f"{_number(update.trainer_logprob)} (trainer); "
                f"loss {_number(update.loss, '+')}"
            )
            if update.teacher_kl is not None:
                yield (
                    f"      teacher: {style.teacher}; log policy - log teacher "
                    f"{update.teacher_kl:+.4g} per token, which algo.opd_coef subtracts from the advantage"
                )
        elif credit.dropped is None:
            yield "      not part of the update: it cannot change the policy"


def _number(value: float | None, sign: str = "") -> str:
    return "not finite" if value is None else f"{value:{sign}.4g}"


def _formula(role: str, style: Style) -> str:
    """Returns the formula that computes the group's advantages from its rewards."""
    algo, batch_std = style.algo, style.batch_std.get(role, 0.0)
    pass_at_k = role == "draft" and algo["draft_credit"] == "pass_at_k"
    estimator = "pass_at_k" if pass_at_k else algo["advantage_estimator"]
    center = {
        "group_mean": "reward - mean of the group",
        "leave_one_out": "reward - mean of the others",
        "pass_at_k": f"gradient weight of the best of {algo['pass_k']} (train.loss.advantages.pass_at_k)",
    }[estimator]
    scale = {
        "group": f" / (standard deviation of the group + {STD_EPSILON:g})",
        "batch": f" / (standard deviation of the step's {role} rewards {batch_std:.4g} + {STD_EPSILON:g})",
        "none": "",
    }[algo["scale_rewards"]]
    return f"advantage = ({center}){scale}" if scale else f"advantage = {center}"


def batch_deviations(calls: Sequence[CallRecord]) -> dict[str, float]:
    """Returns the standard deviation of the trained groups' rewards in a step, by role."""
    rewards: dict[str, list[float]] = {}
    for call in calls:
        if call.credit is not None and call.credit.dropped is None and call.credit.reward is not None:
            rewards.setdefault(call.role, []).append(call.credit.reward)
    return {role: stdev(values) for role, values in rewards.items() if len(values) > 1}


def explain(
    folder: Path, step: int, *, problem: str | None = None, call: str | None = None, characters: int | None
) -> str:
    """Returns the output of the command.

    Raises:
        FileNotFoundError: If ``folder`` is not a run's, or the run has no trace of ``step``; the message
            names the steps that have one.
        ValueError: If the step has no such problem or call.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is not the output_dir of a training run: it has no config.yaml.")
    calls = read_trace(_existing_trace(folder, step))
    if problem is None and call is None:
        return problem_list(calls)
    if call is not None:
        rollout = call.split(".")[0]
        chosen = [each for each in calls if each.call_id.split(".")[0] == rollout]
        if call not in {each.call_id for each in chosen}:
            raise ValueError(f"Step {step} has no call {call!r}. Its ids are printed with --problem.")
    else:
        chosen = [each for each in calls if each.problem_id == problem]
        if not chosen:
            raise ValueError(
                f"No call of step {step} is on problem {problem!r}. Omit --problem to list the problems."
            )
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    # Runs of earlier versions have no such option.
    url = options["rollout"].get("teacher_model_server_url")
    style = Style(
        algo=options["algo"],
        teacher=f"the model at {url}" if url else "the policy reading a workspace",
        batch_std=batch_deviations(calls),
        characters=characters,
    )
    return story(chosen, style)


def _existing_trace(folder: Path, step: int) -> Path:
    path = trace_path(folder, step)
    if path.is_file():
        return path
    steps = traced_steps(folder)
    if not steps:
        there = "there are none (train.trace_steps switches them off or the run has not finished a step)"
    elif len(steps) == 1:
        there = f"there is only step {steps[0]}"
    else:
        there = f"there are {len(steps)} steps between {steps[0]} and {steps[-1]}"
    raise FileNotFoundError(f"{folder / FOLDER} has no trace of step {step}; {there}.")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.explain", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's output_dir")
    parser.add_argument("--step", type=int, required=True, help="number of the step, from 1")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--problem", help="id of a problem; without it, the step's problems are listed")
    chosen.add_argument("--call", help="id of a call, such as 3.17: prints its rollout")
    parser.add_argument("--full", action="store_true", help="show the whole text that was stored")
    options = parser.parse_args()
    characters = None if options.full else SHOWN_CHARACTERS
    try:
        text = explain(
            options.folder, options.step, problem=options.problem, call=options.call, characters=characters
        )
        print(text, flush=True)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"explain: {error}")
    except BrokenPipeError:  # the reader of the pipe, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
