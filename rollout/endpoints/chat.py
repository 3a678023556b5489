"""Client of an OpenAI-compatible chat endpoint, for evaluation: text in, text out.

A chat endpoint returns neither token ids nor log-probs and cannot continue a partial completion, so training,
budget forcing and draft quorums are not available on it.
"""

import asyncio
import logging
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from configs.schema import RolloutConfig
from rollout.endpoints.client import Client, RequestCounts, Unavailable, backoff_seconds
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import CallFailed, RequestRefused

logger = logging.getLogger(__name__)

PATH = "/chat/completions"
FINISHES = ("stop", "length")


class _Message(msgspec.Struct):
    content: str | None = None
    """Final text; endpoints hide their reasoning or return it in other fields."""


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Options that endpoints treat differently, learned from the requests that an endpoint refuses."""

    many: bool = True
    """True if ``n`` above 1 is accepted."""
    limit: str = "max_tokens"
    """Name of the limit: older servers know only ``max_tokens``, OpenAI's reasoning models refuse it."""
    seed: bool = True
    """True if ``seed`` is accepted."""

    def without(self, refusal: str) -> "Dialect | None":
        """Returns the dialect to try after a refusal; None if the refusal names none of these options."""
        # ``n`` is matched as a whole word, since the letter occurs in nearly every message.
        words = set(refusal.replace("'", " ").replace('"', " ").replace("`", " ").split())
        if "max_completion_tokens" in refusal and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if self.many and words & {"n", "n.", "n,", "n:"}:
            return replace(self, many=False)
        if self.seed and "seed" in refusal:
            return replace(self, seed=False)
        return None


class ChatEndpoint:
    """``Sampler`` on a chat endpoint. The key is read from the environment variable ``OPENAI_API_KEY``.

    Use as an async context manager; bound to the event loop that entered it.
    """

    continues = False

    def __init__(self, config: RolloutConfig) -> None:
        self.counts = RequestCounts()
        self._config = config
        self._url = config.chat_url.rstrip("/") + PATH
        self._client = Client("OPENAI_API_KEY", config.request_timeout_seconds)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._dialect = Dialect()
        self._rng = random.Random()  # only spreads retries in time

    async def __aenter__(self) -> "ChatEndpoint":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def check(self, option: str = "rollout.chat_url", timeout: float = 30.0) -> None:
        """Requests the endpoint's list of models, so that a wrong address or key fails before any problem.

        ``option`` is the name of the option that holds the URL.

        Raises:
            RuntimeError: If nothing answers within ``timeout`` seconds, or the key is refused.
        """
        url = self._config.chat_url.rstrip("/") + "/models"
        try:
            status = await self._client.status(url, timeout)
        except RuntimeError as error:
            raise RuntimeError(f"The endpoint at {option} does not answer: {error}") from None
        if status in (401, 403):
            raise RuntimeError(f"{url} answered {status}: set OPENAI_API_KEY to a key that it accepts.")

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> list[Completion]:
        """Returns ``n`` texts: one request if the endpoint accepts ``n``, else ``n`` requests.

        Implements ``Sampler.generate``. A completion has no ids and no log-probs, and one empty version span
        of version 0. Reasoning tokens that the endpoint hides count as completion tokens.

        Raises:
            RequestRefused: If the endpoint refuses the request.
            CallFailed: If the endpoint did not answer after ``max_retries`` further attempts, or a text has a
                finish reason other than ``stop`` and ``length``.
        """
        if sampling.stop_token_ids:
            raise RequestRefused(f"{self._url} works on text and cannot stop at token ids.")
        if n == 1 or not self._dialect.many:
            return await self._singles(prompt, sampling, n)
        try:
            answer = await self._answer(prompt, sampling, n)
        except _OnlyOne:
            return await self._singles(prompt, sampling, n)
        if len(answer.choices) < n:  # some endpoints accept n and ignore it
            self._dialect = replace(self._dialect, many=False)
            rest = await self._singles(prompt, sampling, n - len(answer.choices), first=len(answer.choices))
            return [*self._completions(answer), *rest]
        return self._completions(answer)

    async def abort(self, request_ids: Collection[str]) -> None:
        """Not supported: a chat endpoint cannot return a partial answer.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self._url} cannot abort a request and keep what it wrote.")

    async def _singles(self, prompt: Prompt, sampling: Sampling, n: int, first: int = 0) -> list[Completion]:
        requests = (
            self._answer(prompt, replace(sampling, seed=sampling.seed + i), 1)
            for i in range(first, first + n)
        )
        answers = await asyncio.gather(*requests)
        return [completion for answer in answers for completion in self._completions(answer)]

    async def _answer(self, prompt: Prompt, sampling: Sampling, n: int) -> _Answer:
        async with self._slots:
            payload = await self._send(prompt, sampling, n)
        try:
            answer = msgspec.json.decode(payload, type=_Answer)
        except msgspec.MsgspecError as error:
            raise CallFailed(f"{self._url} did not return a chat completion with usage: {error}") from error
        odd = [choice.finish_reason for choice in answer.choices if choice.finish_reason not in FINISHES]
        if odd or not answer.choices:
            raise CallFailed(f"{self._url} ended a text with {odd or 'nothing'}, neither stop nor length.")
        self.counts.prompt_tokens += answer.usage.prompt_tokens
        self.counts.completion_tokens += _written(answer.usage)
        return answer

    async def _send(self, prompt: Prompt, sampling: Sampling, n: int) -> bytes:
        cause = ""
        attempt = 0
        while attempt <= self._config.max_retries:
            dialect = self._dialect
            # Another request may have learned this meanwhile: the caller then sends ``n`` requests.
            if n > 1 and not dialect.many:
                raise _OnlyOne
            self.counts.requests += 1
            self.counts.retries += attempt > 0
            try:
                return await self._client.sample(self._url, self._body(prompt, sampling, n, dialect))
            except RequestRefused as error:
                spoken = dialect.without(str(error))
                if spoken is None:
                    raise
                # Concurrent requests meet the same refusal; only the first one changes the dialect.
                if dialect == self._dialect:
                    logger.warning("Requests to %s now use these options: %s", self._url, spoken)
                    self._dialect = spoken
            except Unavailable as error:
                cause = str(error)
                logger.warning("Attempt %d of a request failed: %s", attempt + 1, cause)
                pause = max(backoff_seconds(attempt, self._rng), error.retry_after)
                attempt += 1
                # Waiting longer than a request may take is reported as a failure instead.
                if pause > self._config.request_timeout_seconds:
                    break
                if attempt <= self._config.max_retries:
                    await asyncio.sleep(pause)
        raise CallFailed(f"{self._url} did not answer after {attempt} attempts; the last failure: {cause}")

    def _body(self, prompt: Prompt, sampling: Sampling, n: int, dialect: Dialect) -> bytes:
        body: dict[str, Any] = {
            "model": self._config.chat_model,
            "messages": [
                *({"role": turn.role, "content": turn.text} for turn in prompt.before),
                {"role": "user", "content": prompt.text},
            ],
            dialect.limit: sampling.max_tokens,
        }
        # Defaults are omitted: some models refuse these options even at their default value.
        if sampling.temperature != 1.0:
            body["temperature"] = sampling.temperature
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if n > 1:
            body["n"] = n
        if dialect.seed:
            body["seed"] = sampling.seed
        return msgspec.json.encode(body)

    def _completions(self, answer: _Answer) -> list[Completion]:
        choices = sorted(answer.choices, key=lambda choice: choice.index)
        texts = [choice.message.content or "" for choice in choices]
        tokens = _shared_out(_written(answer.usage), [len(text) + 1 for text in texts])
        return [
            Completion(
                token_ids=(),
                logprobs=(),
                finish=choice.finish_reason or "",
                versions=(VersionSpan(version=0, start=0, end=0),),
                usage=Usage(prompt_tokens=answer.usage.prompt_tokens, completion_tokens=written),
                text=text,
            )
            for choice, text, written in zip(choices, texts, tokens, strict=True)
        ]


class _OnlyOne(Exception):
    """Raised when the endpoint turns out to accept only one sample per request."""


def _written(usage: _Usage) -> int:
    """Returns the tokens out, hidden reasoning included even if only ``total_tokens`` counts it."""
    return max(usage.completion_tokens, usage.total_tokens - usage.prompt_tokens)


def _shared_out(total: int, weights: Sequence[int]) -> list[int]:
    """Splits ``total`` in proportion to ``weights`` into integers that sum to it.

    An endpoint counts the tokens of a request, not those of its samples.
    """
    # Differences of the rounded cumulative sums, so that rounding errors do not add up.
    ends = [total * sum(weights[: i + 1]) // sum(weights) for i in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
