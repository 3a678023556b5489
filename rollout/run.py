"""One operator on one problem: sample, score, record."""

import asyncio
import random
from collections.abc import Sequence

from rollout.operators import Operator
from rollout.policy import Policy, PolicySettings, derive_seed
from rollout.records import ATTEMPTS, Call, Grader, Problem, Rollout


async def run_operator(
    problem: Problem,
    operator: Operator,
    settings: PolicySettings,
    grader: Grader,
    seed: int,
    num_answers: int = 1,
    given_drafts: Sequence[Call] = (),
) -> Rollout:
    """The scored rollout of ``operator`` on ``problem``; equal seeds ask for equal samples.

    Its first drafts are those given, as far as they go.

    Raises:
        CallFailed: If one of its calls got no answer.
    """
    policy = Policy(problem, settings, grader, seed, given_drafts)
    rng = random.Random(derive_seed(seed, problem.id, operator.name))
    answers = await operator.answer(policy, rng, num_answers)
    calls = tuple(policy.calls)
    places = [i for i, call in enumerate(calls) if call.role in ATTEMPTS]
    verdicts = await asyncio.gather(*(policy.verdict(i) for i in places))
    return Rollout(
        problem=problem,
        operator=operator.name,
        calls=calls,
        answers=answers.calls,
        waited_for=answers.waited_for,
        verdicts=dict(zip(places, verdicts, strict=True)),
        counts=dict(policy.counts),
    )
