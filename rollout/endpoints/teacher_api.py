"""A teacher: a vLLM server that scores the tokens that the policy sampled, for on-policy distillation.

Beside ``vllm_api`` the only file that knows paths of vLLM. These are of its OpenAI-compatible server and need
none of its options, so that any ``vllm serve`` can teach.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from configs.schema import RolloutConfig
from rollout.endpoints.client import Client, Unavailable, backoff_seconds
from rollout.endpoints.vllm_api import NOT_FINITE, SURE, VllmApi
from rollout.sampler import CallFailed

KEY_VARIABLE = "OPENAI_API_KEY"
OPTION = "rollout.teacher_model_server_url"
SCORE = "/v1/completions"
DECODE = "/detokenize"
CHECK_SECONDS = 60.0
"""Time limit of one request of ``TeacherEndpoint.check``."""
IDS_PER_REQUEST = 4096
"""Token ids that one request of ``TeacherEndpoint.check`` compares."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is compared."""

    def __len__(self) -> int: ...
    def decode(self, token_ids: list[int]) -> str | list[str]: ...


class _Score(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Score] | None]


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class TeacherEndpoint:
    """Log-probs of given tokens. The key is read from the environment variable ``OPENAI_API_KEY``.

    Use as an async context manager; bound to the event loop that entered it.
    """

    def __init__(self, config: RolloutConfig) -> None:
        self._config = config
        self._url = config.teacher_model_server_url.rstrip("/")
        self._client = Client(KEY_VARIABLE, config.request_timeout_seconds)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._rng = random.Random()  # only spreads retries in time

    async def __aenter__(self) -> "TeacherEndpoint":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def check(self, tokenizer: Tokenizer) -> None:
        """Checks that the teacher answers, has the policy's tokenizer, and takes sequences as long as its.

        Every id of the policy's tokenizer must decode to the same text at the teacher. It may know more ids.

        Raises:
            RuntimeError: If the endpoint does not answer.
            ValueError: If its tokenizer or its limit is another one.
        """
        api = VllmApi(self._client)
        try:
            served = await api.served_model(self._url, CHECK_SECONDS)
        except RuntimeError as error:
            raise RuntimeError(f"The teacher at {OPTION} does not answer: {error}") from None
        longest = self._config.max_model_len
        # A request to score must also sample one token.
        if served.max_model_len is not None and served.max_model_len <= longest:
            raise ValueError(
                f"{OPTION}: {self._url} takes {served.max_model_len} tokens, but scoring a sequence of "
                f"rollout.max_model_len = {longest} takes one more. Start it with --max-model-len "
                f"{longest + 1}, or set rollout.max_model_len={served.max_model_len - 1}."
            )
        for start in range(0, len(tokenizer), IDS_PER_REQUEST):
            await self._compare(tokenizer, list(range(start, min(start + IDS_PER_REQUEST, len(tokenizer)))))

    async def _compare(self, tokenizer: Tokenizer, ids: list[int]) -> None:
        """Raises ``ValueError`` if the teacher decodes ``ids`` to another text than the policy."""
        url = f"{self._url}{DECODE}"
        try:
            answer = await self._client.control("POST", url, {"tokens": ids}, CHECK_SECONDS)
            theirs = answer["prompt"]
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{OPTION}: the tokenizer of {self._url} cannot be compared with the policy's ({error}). It "
                "must be a vLLM server whose model has the tokenizer of model.path."
            ) from None
        if theirs == (own := str(tokenizer.decode(ids))):
            return
        place = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), len(own))
        shown = slice(max(0, place - 10), place + 10)
        raise ValueError(
            f"{OPTION}: {self._url} has another tokenizer than model.path: of the ids {ids[0]} to {ids[-1]}, "
            f"{own[shown]!r} is {theirs[shown]!r} there. A teacher scores the policy's own tokens, so both "
            "must have one tokenizer."
        )

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[float, ...]:
        """Returns the log-prob of each completion token, given all tokens before it, at temperature 1.

        Raises:
            RequestRefused: If the teacher refuses the request.
            CallFailed: If it did not answer after ``max_retries`` further attempts, or its scores are
                impossible.
        """
        ids = [*prompt_ids, *completion_ids]
        body = {"prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        async with self._slots:
            payload = await self._send(msgspec.json.encode(body))
        try:
            (choice,) = msgspec.json.decode(payload, type=_Answer).choices
            scores = choice.prompt_logprobs
            if len(scores) != len(ids):
                raise ValueError(f"{len(scores)} scores of {len(ids)} tokens")
            found = [_score(scores[place], ids[place]) for place in range(len(prompt_ids), len(ids))]
        except ValueError as error:  # msgspec's errors are ValueErrors, too
            raise CallFailed(
                f"{self._url}{SCORE} did not return the log-probs of its prompt: {error}"
            ) from error
        return tuple(found)

    async def _send(self, body: bytes) -> bytes:
        cause = ""
        for attempt in range(self._config.max_retries + 1):
            try:
                return await self._client.sample(f"{self._url}{SCORE}", body)
            except Unavailable as error:
                cause = str(error)
                pause = max(backoff_seconds(attempt, self._rng), error.retry_after)
                if attempt == self._config.max_retries or pause > self._config.request_timeout_seconds:
                    break
                await asyncio.sleep(pause)
        raise CallFailed(f"The teacher {self._url} did not answer; the last failure: {cause}")


def _score(of_position: dict[str, _Score] | None, token_id: int) -> float:
    scored = (of_position or {}).get(str(token_id))
    if scored is None:
        raise ValueError(f"no score of the token {token_id}")
    if not NOT_FINITE < scored.logprob <= SURE:
        raise ValueError(
            f"a log-prob of {scored.logprob} for the token {token_id} (the server must run with vLLM's own "
            "--logprobs-mode raw_logprobs, and with sound weights)"
        )
    return scored.logprob
