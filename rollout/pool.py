"""The pool of vLLM workers: routing, retries, limits, versions."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from configs.schema import RolloutConfig
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import CallFailed, RequestRefused

logger = logging.getLogger(__name__)

START_VERSION = "default"
"""vLLM's label of weights that were never published to; our version 0."""


def parse_version(label: str) -> int:
    """The policy version behind vLLM's weight label."""
    return 0 if label == START_VERSION else int(label)


@dataclass(slots=True)
class Endpoint:
    """One worker as the pool sees it. ``restart`` is None for workers that somebody else started."""

    url: str
    restart: Callable[[], Awaitable[str]] | None = None
    in_flight: int = 0
    reviving: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: int = 0
    """Times that it was restarted."""


@dataclass(slots=True)
class PoolCounts:
    """Since the start of the run."""

    requests: int = 0
    retries: int = 0
    restarts: int = 0
    prompt_tokens: int = 0
    """As the workers' own ``usage`` says: a prompt shared by n samples counts once."""
    completion_tokens: int = 0
    cached_tokens: int = 0


class WorkerPool:
    """Sends each request to the least loaded worker; re-sends what a broken worker did not answer.

    Use as an async context manager; bound to the event loop that entered it.
    """

    def __init__(self, endpoints: Sequence[Endpoint], config: RolloutConfig) -> None:
        self.endpoints = list(endpoints)
        self.counts = PoolCounts()
        self.after_restart: Callable[[Endpoint], Awaitable[None]] | None = None
        """Called before a restarted worker gets requests: brings it to the current weights."""
        self._config = config
        self._slots = asyncio.Semaphore(config.max_concurrency)

    async def __aenter__(self) -> "WorkerPool":
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._config.request_timeout_seconds),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> list[Completion]:
        """``n`` completions of one context (``Sampler.generate``).

        Raises:
            RequestRefused: If the worker refuses it, e.g. since the prompt is too long.
            CallFailed: If no worker answered after ``max_retries`` further attempts.
        """
        if sampling.temperature == 0 and n > 1:  # vLLM refuses n > 1 when greedy
            singles = await asyncio.gather(*(self.generate(prompt, sampling) for _ in range(n)))
            return [completion for (completion,) in singles]
        body = {
            "token_ids": prompt.ids,
            "sampling_params": {
                "n": n,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed,
                "logprobs": 0,
                "detokenize": False,
            },
        }
        if request_id is not None:
            body["request_id"] = request_id
        async with self._slots:
            answer = await self._send(body)
        usage = answer["usage"]
        self.counts.prompt_tokens += usage["prompt_tokens"]
        self.counts.completion_tokens += usage["completion_tokens"]
        self.counts.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [_completion(choice, len(prompt.ids)) for choice in choices]

    async def abort(self, request_ids: Collection[str]) -> None:
        """Ends requests early (``Sampler.abort``), whichever worker has them.

        Raises:
            RuntimeError: If a worker does not take the order.
        """
        body = {"request_ids": sorted(request_ids)}
        await asyncio.gather(
            *(self.post(endpoint, "/inference/v1/abort_requests", body) for endpoint in self.endpoints)
        )

    async def post(self, endpoint: Endpoint, path: str, body: Any = None, timeout: float = 60.0) -> Any:
        """One control request.

        Raises:
            RuntimeError: If it fails or takes longer than ``timeout`` seconds.
        """
        return await self._control("POST", endpoint, path, body, timeout)

    async def served_version(self, endpoint: Endpoint, timeout: float = 30.0) -> int:
        """The policy version that a worker says it serves.

        Raises:
            RuntimeError: If it does not say within ``timeout`` seconds.
        """
        answer = await self._control("GET", endpoint, "/weight_info", None, timeout)
        return parse_version(answer["weight_version"])

    async def _control(self, method: str, endpoint: Endpoint, path: str, body: Any, timeout: float) -> Any:
        limit = aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._http.request(method, endpoint.url + path, json=body, timeout=limit) as response:
                text = await response.text()
                if response.status != 200:
                    raise RuntimeError(f"{endpoint.url}{path} answered {response.status}: {text[:500]}")
                return json.loads(text) if text else None
        except TimeoutError as error:
            raise RuntimeError(f"{endpoint.url}{path} did not answer within {timeout:g} s.") from error
        except aiohttp.ClientError as error:
            raise RuntimeError(f"{endpoint.url}{path} failed: {error!r}") from error

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        failure = ""
        failed = [0] * len(self.endpoints)
        for attempt in range(self._config.max_retries + 1):
            # A broken worker answers fast and so is idle: first those that failed this request least.
            place = min(range(len(failed)), key=lambda i: (failed[i], self.endpoints[i].in_flight))
            endpoint = self.endpoints[place]
            generation = endpoint.generation
            endpoint.in_flight += 1
            self.counts.requests += 1
            try:
                return await self._attempt(endpoint, body)
            except (aiohttp.ClientError, TimeoutError, _ServerError) as error:
                failure = f"{endpoint.url}: {error!r}"
                failed[place] += 1
            finally:
                endpoint.in_flight -= 1
            self.counts.retries += 1
            logger.warning("Request failed (attempt %d): %s", attempt + 1, failure)
            await self._revive(endpoint, generation)
            await asyncio.sleep(min(0.2 * 2**attempt, 5.0))
        raise CallFailed(
            f"No rollout worker answered after {self._config.max_retries + 1} attempts; the last failure: "
            f"{failure}. See the worker's log."
        )

    async def _attempt(self, endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
        async with self._http.post(endpoint.url + "/inference/v1/generate", json=body) as response:
            payload = await response.read()
            if response.status == 200:
                return json.loads(payload)
            text = payload.decode(errors="replace")[:500]
            if response.status >= 500 or response.status == 429:
                raise _ServerError(f"status {response.status}: {text}")
            raise RequestRefused(f"{endpoint.url} refused a request with {response.status}: {text}")

    async def _revive(self, endpoint: Endpoint, generation: int) -> None:
        """Restarts a broken local worker once, however many requests it failed."""
        if endpoint.restart is None:
            return
        async with endpoint.reviving:
            if endpoint.generation != generation or await self._is_healthy(endpoint):
                return
            endpoint.url = await endpoint.restart()
            if self.after_restart is not None:
                await self.after_restart(endpoint)
            endpoint.generation += 1
            self.counts.restarts += 1

    async def _is_healthy(self, endpoint: Endpoint) -> bool:
        try:
            limit = aiohttp.ClientTimeout(total=10)
            async with self._http.get(endpoint.url + "/health", timeout=limit) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


class _ServerError(Exception):
    """A status that is worth another attempt."""


def _completion(choice: dict[str, Any], prompt_tokens: int) -> Completion:
    content = choice["logprobs"]["content"]
    ids = tuple(choice["token_ids"])
    assert [entry["token_id"] for entry in content] == list(ids), "log-probs belong to the sampled ids"
    return Completion(
        token_ids=ids,
        logprobs=tuple(entry["logprob"] for entry in content),
        finish=choice["finish_reason"],
        versions=tuple(
            VersionSpan(version=parse_version(s["version"]), start=s["start"], end=s["end"])
            for s in choice["weight_versions"]
        ),
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=len(ids)),
    )
