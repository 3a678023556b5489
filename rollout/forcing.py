"""Budget forcing: closes thinking that reaches its limit, after which the policy writes its answer.

A call takes up to two requests. The first may write ``thinking_tokens`` and ends at the closing mark, if
the mark is one token. If the sequence has not ended by then, a second request continues it with its own
``answer_tokens``; its prompt is in the worker's prefix cache. If the thinking is still open, a closing
phrase is inserted in between. Its tokens are forced, not sampled: they are in no loss.
"""

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass, replace

from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingLimit:
    """Token limits of a call's thinking and of its answer, and the phrase that closes the thinking."""

    thinking_tokens: int
    answer_tokens: int
    close_ids: tuple[int, ...]
    """Id of the closing mark if it is a single token; else empty."""
    force_ids: tuple[int, ...]
    """Ids of the closing phrase, mark included."""
    is_open: Callable[[tuple[int, ...]], bool]
    """Returns True if a completion is still inside its thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A completion with a mask over its tokens."""

    completion: Completion
    train_mask: tuple[bool, ...]
    """One entry per completion token: True if the policy sampled it, False if it was forced."""


async def sample(
    sampler: Sampler,
    prompt: Prompt,
    sampling: Sampling,
    n: int,
    limit: ThinkingLimit | None,
    request_id: str | None = None,
    aborted: Container[str] = (),
) -> list[Sampled]:
    """Samples ``n`` completions of one context, their thinking closed at ``limit``; returns them in order.

    Args:
        sampler: Sends the requests.
        prompt: The context.
        sampling: Sampling parameters; without a limit its ``max_tokens`` bounds the completion.
        n: Number of completions.
        limit: None for no limit on thinking.
        request_id: Name of the call for ``Sampler.abort``; only with one completion.
        aborted: Names of calls that were aborted meanwhile: these make no second request.
    """
    if limit is None:
        completions = await sampler.generate(prompt, sampling, n, request_id)
        return [_whole(completion) for completion in completions]
    stops = (*sampling.stop_token_ids, *limit.close_ids)
    thinking = replace(sampling, max_tokens=limit.thinking_tokens, stop_token_ids=stops)
    completions = await sampler.generate(prompt, thinking, n, request_id)

    async def answered(number: int, first: Completion) -> Sampled:
        at_mark = first.finish == "stop" and first.token_ids[-1:] == limit.close_ids
        # Aborted, or ended by itself before the limit: there is nothing to continue.
        if first.finish == "abort" or (first.finish == "stop" and not at_mark):
            return _whole(first)
        if request_id is not None and request_id in aborted:
            return _whole(replace(first, finish="abort"))
        forced = limit.force_ids if limit.is_open(first.token_ids) else ()
        so_far = replace(prompt, ids=prompt.ids + first.token_ids + forced)
        # The n samples of the first request share a seed; their continuations need one each.
        rest = replace(sampling, max_tokens=limit.answer_tokens, seed=(sampling.seed + number + 1) % 2**31)
        (second,) = await sampler.generate(so_far, rest, 1, request_id)
        return _joined(first, forced, second)

    return list(await asyncio.gather(*(answered(i, first) for i, first in enumerate(completions))))


def _whole(completion: Completion) -> Sampled:
    return Sampled(completion=completion, train_mask=(True,) * len(completion.token_ids))


def _joined(first: Completion, forced: tuple[int, ...], second: Completion) -> Sampled:
    """Returns one completion of thinking, forced tokens and answer."""
    # Offset of the answer: token_ids = first (sampled) + forced (not sampled) + second (sampled).
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
        # The second request's prompt repeats the first request's tokens, which are counted once.
        usage=Usage(prompt_tokens=first.usage.prompt_tokens, completion_tokens=len(token_ids)),
    )
    mask = (True,) * len(first.token_ids) + (False,) * len(forced) + (True,) * len(second.token_ids)
    return Sampled(completion=completion, train_mask=mask)
