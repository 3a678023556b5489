"""Budget forcing: thinking that reaches its limit is closed for the policy, which then gives its answer.

A call takes up to two requests. The first may write ``thinking_tokens`` and ends at the closing mark, if
that is one token. If the sequence has not ended by then, a second request goes on from it, with
``answer_tokens`` of its own; its prompt lies in the worker's prefix cache. Where the thinking is still open,
a closing phrase is put in between. Its tokens are forced, not sampled: they are in no loss.
"""

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass, replace

from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingLimit:
    """How far a call may think, and what it may write afterwards."""

    thinking_tokens: int
    answer_tokens: int
    close_ids: tuple[int, ...]
    """The closing mark, if it is a single token; else empty."""
    force_ids: tuple[int, ...]
    """The closing phrase, mark included."""
    is_open: Callable[[tuple[int, ...]], bool]
    """Whether a completion is still inside its thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A completion, and which of its tokens the policy sampled."""

    completion: Completion
    train_mask: tuple[bool, ...]


async def sample(
    sampler: Sampler,
    prompt: Prompt,
    sampling: Sampling,
    n: int,
    limit: ThinkingLimit | None,
    request_id: str | None = None,
    aborted: Container[str] = (),
) -> list[Sampled]:
    """``n`` completions of one context, their thinking closed at ``limit``; in order.

    Args:
        sampler: Where calls are sampled.
        prompt: What they are given.
        sampling: How; without a limit its ``max_tokens`` bound the completion.
        n: Completions wanted.
        limit: None for no limit on thinking.
        request_id: Names the call for ``Sampler.abort``; for one completion.
        aborted: Names of calls that were aborted meanwhile: they do not go on to a second request.
    """
    if limit is None:
        completions = await sampler.generate(prompt, sampling, n, request_id)
        return [_whole(completion) for completion in completions]
    thinking = replace(sampling, max_tokens=limit.thinking_tokens, stop_token_ids=limit.close_ids)
    completions = await sampler.generate(prompt, thinking, n, request_id)

    async def answered(number: int, first: Completion) -> Sampled:
        at_mark = first.finish == "stop" and first.token_ids[-1:] == limit.close_ids
        if first.finish == "abort" or (first.finish == "stop" and not at_mark):
            return _whole(first)
        if request_id is not None and request_id in aborted:
            return _whole(replace(first, finish="abort"))
        forced = limit.force_ids if limit.is_open(first.token_ids) else ()
        so_far = replace(prompt, ids=prompt.ids + first.token_ids + forced)
        # Samples of one request share a seed; what goes on from them must not.
        rest = replace(sampling, max_tokens=limit.answer_tokens, seed=(sampling.seed + number + 1) % 2**31)
        (second,) = await sampler.generate(so_far, rest, 1, request_id)
        return _joined(first, forced, second)

    return list(await asyncio.gather(*(answered(i, first) for i, first in enumerate(completions))))


def _whole(completion: Completion) -> Sampled:
    return Sampled(completion=completion, train_mask=(True,) * len(completion.token_ids))


def _joined(first: Completion, forced: tuple[int, ...], second: Completion) -> Sampled:
    """One completion of thinking, forced tokens and answer."""
    start = len(first.token_ids) + len(forced)
    shifted = (
        VersionSpan(version=span.version, start=start + span.start, end=start + span.end)
        for span in second.versions
    )
    token_ids = first.token_ids + forced + second.token_ids
    completion = Completion(
        token_ids=token_ids,
        logprobs=first.logprobs + (0.0,) * len(forced) + second.logprobs,
        finish=second.finish,
        versions=(*first.versions, *shifted),
        # The second request's prompt is the first's and what it wrote: it is not paid for twice.
        usage=Usage(prompt_tokens=first.usage.prompt_tokens, completion_tokens=len(token_ids)),
    )
    mask = (True,) * len(first.token_ids) + (False,) * len(forced) + (True,) * len(second.token_ids)
    return Sampled(completion=completion, train_mask=mask)
