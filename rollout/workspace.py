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


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Text of at most kappa tokens, made only of post-thinking solutions.

    ``parents`` are the calls it was made from; ``truncated`` says that the bound cut something.
    """

    text: str
    parents: tuple[int, ...]
    truncated: bool = False

    @property
    def is_empty(self) -> bool:
        """No draft had a usable solution (or it is the first round): solve the plain problem."""
        return not self.text


EMPTY = Workspace(text="", parents=())


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerOptions:
    """``top_k``: drafts kept. ``kappa``: tokens of the policy's own tokenizer."""

    top_k: int
    kappa: int


Distiller = Callable[
    [Policy, Sequence[Solution], int, DistillerOptions, random.Random], Awaitable[list[Workspace]]
]
"""``await distil(policy, drafts, width, options, rng)`` gives ``width`` workspaces."""


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
    kept, extra = await _most_trusted(policy, drafts, options.top_k, rng)
    return [paste(policy, rng.sample(kept, len(kept)), options.kappa, extra)] * width


async def per_sample_topk(
    policy: Policy,
    drafts: Sequence[Solution],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """Each next call ranks for itself: k drafts by a verification pass of its own."""

    async def own(rng: random.Random) -> Workspace:
        kept, extra = await _most_trusted(policy, drafts, options.top_k, rng)
        return paste(policy, rng.sample(kept, len(kept)), options.kappa, extra)

    # A generator for each: what is drawn must not depend on which ranking ends first.
    return await asyncio.gather(*(own(random.Random(rng.random())) for _ in range(width)))


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


DISTILLERS: dict[str, Distiller] = {
    "global_summary": global_summary,
    "shared_topk": shared_topk,
    "per_sample_topk": per_sample_topk,
    "random_k": random_k,
}


async def _most_trusted(
    policy: Policy, drafts: Sequence[Solution], k: int, rng: random.Random
) -> tuple[list[Solution], list[int]]:
    """The ``k`` drafts with the best own verdict (yes, unclear, no), ties broken by ``rng``.

    Makes no call when nothing has to be left out. Returns the drafts and the verify calls.
    """
    if len(drafts) <= k:
        return list(drafts), []
    shuffled = rng.sample(drafts, len(drafts))
    calls = await policy.verify(shuffled)
    trust = [policy.verification(call) for call in calls]
    ranked = sorted(range(len(shuffled)), key=lambda i: -trust[i])
    return [shuffled[i] for i in ranked[:k]], calls
