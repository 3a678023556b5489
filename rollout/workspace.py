"""The bounded workspace and the distillers that make it from drafts.

A distiller maps the drafts of one round to the workspaces of the next round's calls, one for each
call: equal for shared distillers, its own for per-sample ones. The workspace is rebuilt every round
from that round's drafts only.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rollout.policy import Policy, Solution
from rollout.prompts import join_drafts
from rollout.records import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerOptions:
    """How drafts become a workspace."""

    name: str
    """A key of ``DISTILLERS``."""
    top_k: int
    """Drafts kept by a top-k or random-k distiller."""
    kappa: int
    """The bound, in tokens of the policy's own tokenizer."""
    oracle: str = "only_correct"
    """Drafts that the oracle admits: ``only_correct`` or ``only_wrong``."""


Distiller = Callable[
    [Policy, Sequence[Solution], int, DistillerOptions, random.Random], Awaitable[list[Workspace]]
]
"""``await distiller(policy, drafts, width, options, rng)`` gives ``width`` workspaces."""


async def distil(
    policy: Policy, drafts: Sequence[int], width: int, options: DistillerOptions, rng: random.Random
) -> list[Workspace]:
    """D(x, S): what each of the next round's ``width`` calls reads of this round's drafts.

    Drafts without a usable solution never enter a workspace. If none is left, the workspaces are empty:
    the next round falls back to the plain problem, which is counted.
    """
    usable = _usable(policy, drafts)
    if usable:
        workspaces = await DISTILLERS[options.name](policy, usable, width, options, rng)
    else:
        workspaces = [Workspace(text="", parents=tuple(drafts))] * width
    _count(policy, workspaces)
    return workspaces


async def carry_over(policy: Policy, drafts: Sequence[int], kappa: int, *, error_analysis: bool) -> Workspace:
    """The workspace of sequential refinement: the last solution, and by option a list of its errors.

    Args:
        policy: The policy on one problem.
        drafts: The round's one call.
        kappa: The bound, in tokens.
        error_analysis: Ask the policy for the solution's errors first.
    """
    workspace = Workspace(text="", parents=tuple(drafts))
    usable = _usable(policy, drafts)
    if usable and error_analysis:
        workspace = _reviewed(policy, usable[0], await policy.analyse(usable[0]), kappa)
    elif usable:
        workspace = paste(policy, usable, kappa)
    _count(policy, [workspace])
    return workspace


def _usable(policy: Policy, drafts: Sequence[int]) -> list[Solution]:
    solutions = [policy.solution(draft) for draft in drafts]
    policy.counts.update(f"label/{solution.label}" for solution in solutions)
    return [solution for solution in solutions if solution.is_usable]


def _count(policy: Policy, workspaces: Sequence[Workspace]) -> None:
    for workspace in set(workspaces):
        policy.counts["workspace/fallback"] += workspace.is_empty
        policy.counts["workspace/truncated"] += workspace.truncated


def paste(policy: Policy, drafts: Sequence[Solution], kappa: int, extra: Sequence[int] = ()) -> Workspace:
    """A workspace that holds the drafts themselves, cut to ``kappa`` tokens.

    What is too long loses whole drafts from the end first; a single draft that is still too long
    loses its end.
    """
    parents = tuple(draft.call for draft in drafts) + tuple(extra)
    kept = list(drafts)
    while len(kept) > 1 and policy.codec.count(_pasted(policy, kept)) > kappa:
        kept.pop()
    text = _pasted(policy, kept)
    bounded = policy.codec.cut(text, kappa)
    truncated = len(kept) < len(drafts) or bounded != text
    return Workspace(text=bounded, parents=parents, truncated=truncated)


def _pasted(policy: Policy, drafts: Sequence[Solution]) -> str:
    return join_drafts(policy.prompts.draft_texts([draft.text for draft in drafts]))


def _reviewed(policy: Policy, draft: Solution, analysis: int, kappa: int) -> Workspace:
    """The draft with its error analysis; what is too long loses its end."""
    text = policy.prompts.analysis_text(_pasted(policy, [draft]), policy.solution(analysis).text)
    bounded = policy.codec.cut(text, kappa)
    return Workspace(text=bounded, parents=(draft.call, analysis), truncated=bounded != text)


async def global_summary(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """One text for all, written by the policy: agreements, contradictions, results, open goals."""
    shuffled = rng.sample(drafts, len(drafts))
    call = await policy.distil(shuffled, kappa=options.kappa)
    summary = policy.solution(call)
    if not summary.is_usable:
        return [Workspace(text="", parents=(call,))] * width
    text = policy.codec.cut(summary.text, options.kappa)
    return [Workspace(text=text, parents=(call,), truncated=text != summary.text)] * width


async def shared_topk(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """The k drafts that the policy itself holds most likely right, the same for every next call."""
    return [await _most_trusted(policy, drafts, options, rng)] * width


async def per_sample_topk(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """Each next call ranks for itself: k drafts by a verification pass of its own."""
    # A generator for each: what is drawn must not depend on which ranking ends first.
    own = [random.Random(rng.random()) for _ in range(width)]
    return await asyncio.gather(*(_most_trusted(policy, drafts, options, each) for each in own))


async def random_k(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """k drafts drawn uniformly, anew for every next call."""
    k = min(options.top_k, len(drafts))
    return [paste(policy, rng.sample(drafts, k), options.kappa) for _ in range(width)]


async def all_drafts(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """Every usable draft, in one order for all."""
    return [paste(policy, rng.sample(drafts, len(drafts)), options.kappa)] * width


async def oracle(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """Up to k drafts that the verifier holds right (or wrong): the paper's ablation, never for training."""
    verdicts = await asyncio.gather(*(policy.verdict(draft.call) for draft in drafts))
    wanted = options.oracle == "only_correct"
    admitted = [d for d, verdict in zip(drafts, verdicts, strict=True) if verdict.is_correct == wanted]
    if not admitted:
        return [Workspace(text="", parents=tuple(draft.call for draft in drafts))] * width
    k = min(options.top_k, len(admitted))
    return [paste(policy, rng.sample(admitted, k), options.kappa)] * width


DISTILLERS: dict[str, Distiller] = {
    "global_summary": global_summary,
    "shared_topk": shared_topk,
    "per_sample_topk": per_sample_topk,
    "random_k": random_k,
    "all": all_drafts,
    "oracle": oracle,
}


async def trust(
    policy: Policy, drafts: Sequence[Solution], rng: random.Random
) -> tuple[list[Solution], list[int]]:
    """Ranks drafts by the policy's own verification: yes, unclear, no; ties broken by ``rng``.

    Returns the drafts, the most trusted first, and the verify calls.
    """
    shuffled = rng.sample(drafts, len(drafts))
    calls = await policy.verify(shuffled)
    verdicts = [policy.verification(call) for call in calls]
    ranked = sorted(range(len(shuffled)), key=lambda i: -verdicts[i])
    return [shuffled[i] for i in ranked], calls


async def _most_trusted(
    policy: Policy, drafts: Sequence[Solution], options: DistillerOptions, rng: random.Random
) -> Workspace:
    """The k most trusted drafts, in random order; no call is made when nothing has to be left out."""
    calls: list[int] = []
    kept = list(drafts)
    if len(drafts) > options.top_k:
        ranked, calls = await trust(policy, drafts, rng)
        kept = ranked[: options.top_k]
    return paste(policy, rng.sample(kept, len(kept)), options.kappa, calls)
