"""One operator on one problem: sample, score, record."""

import asyncio
import random
from dataclasses import replace

from rollout.operators import Operator, improve
from rollout.policy import Policy, PolicySettings, derive_seed
from rollout.records import ATTEMPTS, Grader, Problem, Rollout


async def run_operator(
    problem: Problem, operator: Operator, settings: PolicySettings, grader: Grader, seed: int
) -> Rollout:
    """The scored rollout of ``operator`` on ``problem``; equal seeds ask for equal samples."""
    policy = Policy(problem, settings, seed)
    rng = random.Random(derive_seed(seed, problem.id, operator.name))
    answers = await improve(policy, operator, rng)
    rollout = Rollout(
        problem=problem,
        operator=operator.name,
        calls=tuple(policy.calls),
        answers=tuple(answers),
        counts=dict(policy.counts),
    )
    places = [i for i, call in enumerate(rollout.calls) if call.role in ATTEMPTS]
    verdicts = await asyncio.gather(*(grader.score(problem, rollout.calls[i].text) for i in places))
    return replace(rollout, verdicts=dict(zip(places, verdicts, strict=True)))
