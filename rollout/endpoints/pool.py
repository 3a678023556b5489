"""The pool of vLLM workers: retries, limits, restarts, aborts."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Collection, Sequence

from configs.schema import RolloutConfig
from rollout.endpoints.access import KEY_VARIABLE
from rollout.endpoints.client import (
    FIRST_BACKOFF_SECONDS,
    Client,
    RequestCounts,
    Unavailable,
    backoff_seconds,
)
from rollout.endpoints.engine_api import EngineApi
from rollout.endpoints.open_requests import ABORT_SECONDS, OpenRequest, OpenRequests, never_sent
from rollout.endpoints.restarts import Restarter
from rollout.endpoints.routing import Endpoint, Router
from rollout.endpoints.vllm_api import VllmApi
from rollout.records import Completion, Prompt, Sampling
from rollout.sampler import CallFailed

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 10.0
"""The longest that a worker may take to say that it is healthy."""
LOOK_AGAIN_SECONDS = 1.0
"""A request that waits for its turn looks that often whether another worker is free of trouble."""


class WorkerPool:
    """Samples on vLLM workers (``Sampler``); re-sends what a broken worker did not answer.

    Use as an async context manager; bound to the event loop that entered it.
    """

    continues = True

    def __init__(self, endpoints: Sequence[Endpoint], config: RolloutConfig) -> None:
        self.endpoints = list(endpoints)
        self.counts = RequestCounts()
        self.restarter = Restarter(self._is_sound)
        self._config = config
        self._client = Client(KEY_VARIABLE, config.request_timeout_seconds)
        self.api: EngineApi = VllmApi(self._client)
        """How workers are spoken to; for those who need more of them than samples."""
        self._router = Router()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._open_requests = OpenRequests(self._send_abort)
        self._rng = random.Random()  # only spreads retries in time

    async def __aenter__(self) -> "WorkerPool":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.restarter.close()
        await self._client.__aexit__()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> list[Completion]:
        """``n`` completions of one context (``Sampler.generate``).

        Raises:
            RequestRefused: If the worker refuses it, e.g. since the prompt is too long.
            CallFailed: If no worker answered after ``max_retries`` further attempts, or the worker broke
                after the request was aborted.
        """
        if sampling.temperature > 0 or n == 1:
            return await self._request(prompt, sampling, n, request_id, request_id)
        # vLLM refuses n > 1 when greedy.
        names = [None if request_id is None else f"{request_id}-{i}" for i in range(n)]
        singles = await asyncio.gather(
            *(self._request(prompt, sampling, 1, request_id, name) for name in names)
        )
        return [completion for (completion,) in singles]

    async def abort(self, request_ids: Collection[str]) -> None:
        """Ends requests early (``Sampler.abort``); returns when their answers are there.

        Only the worker that has a request is told. One that no worker has yet returns no tokens. If a worker
        keeps an answer for longer than ``open_requests.ABORT_SECONDS``, its ``generate`` fails.
        """
        await self._open_requests.abort(request_ids)

    async def served_version(self, endpoint: Endpoint, timeout: float = 30.0) -> int:
        """The policy version that a worker says it serves.

        Raises:
            RuntimeError: If it does not say within ``timeout`` seconds.
        """
        endpoint.version = await self.api.weight_version(endpoint.url, timeout)
        return endpoint.version

    async def _request(
        self, prompt: Prompt, sampling: Sampling, n: int, request_id: str | None, wire_id: str | None
    ) -> list[Completion]:
        """One request, named ``request_id`` for ``abort`` and ``wire_id`` for its worker."""
        request = OpenRequest(wire_id=wire_id)
        if request_id is None:
            return await self._send(request, prompt, sampling, n)
        request.work = asyncio.create_task(self._send(request, prompt, sampling, n))
        with self._open_requests.under(request_id, request):
            try:
                return await request.work
            except asyncio.CancelledError:
                own = asyncio.current_task()
                if not request.is_aborted or (own is not None and own.cancelling()):
                    raise
                if request.overdue:
                    raise CallFailed(request.overdue) from None
                version = max(endpoint.version for endpoint in self.endpoints)
                return [never_sent(version)] * n

    async def _send(
        self, request: OpenRequest, prompt: Prompt, sampling: Sampling, n: int
    ) -> list[Completion]:
        body = self.api.request_body(prompt, sampling, n, request.wire_id)
        ready_at: dict[Endpoint, float] = {}
        failures: Counter[Endpoint] = Counter()
        cause = ""
        async with self._slots:
            for attempt in range(self._config.max_retries + 1):
                endpoint = await self._turn(prompt.context, failures, ready_at)
                self.counts.requests += 1
                self.counts.retries += attempt > 0
                try:
                    with request.at(endpoint, n):
                        answer = await self.api.generate(endpoint.url, body)
                    if answer.is_aborted and not request.is_aborted:
                        raise Unavailable(f"{endpoint.url} gave up a request that nobody aborted.")
                except Unavailable as error:
                    cause = str(error)
                    if request.is_aborted:
                        raise CallFailed(f"A worker broke while it aborted a request: {cause}") from error
                    self._note_failure(endpoint, error)
                    now = asyncio.get_running_loop().time()
                    ready_at[endpoint] = now + backoff_seconds(failures[endpoint], self._rng)
                    failures[endpoint] += 1
                else:
                    self.counts.prompt_tokens += answer.prompt_tokens
                    self.counts.completion_tokens += answer.completion_tokens
                    self.counts.cached_tokens += answer.cached_tokens
                    return answer.completions(len(prompt.ids), endpoint.version)
        raise CallFailed(
            f"No rollout worker answered after {self._config.max_retries + 1} attempts; "
            f"the last failure: {cause}"
        )

    def _note_failure(self, endpoint: Endpoint, error: Unavailable) -> None:
        """Keeps requests away from a worker that failed, and has it checked unless it was only busy."""
        now = asyncio.get_running_loop().time()
        if now >= endpoint.avoid_until:  # once for all requests that a broken worker had
            logger.warning("A request failed and is sent again: %s", error)
        endpoint.failed(now, error.retry_after)
        if not error.is_busy:
            self.restarter.begin(endpoint)

    async def _turn(
        self, context: str, failures: Counter[Endpoint], ready_at: dict[Endpoint, float]
    ) -> Endpoint:
        """The worker to send to, once it may be sent to."""
        clock = asyncio.get_running_loop().time
        while True:
            endpoint = self._router.choose(self.endpoints, context, failures, clock())
            if endpoint is None:
                await self.restarter.back(self.endpoints)
                continue
            pause = endpoint.closed_until - clock()
            if pause > self._config.request_timeout_seconds:
                raise CallFailed(
                    f"{endpoint.url} asks to wait {pause:.0f} s (Retry-After), longer than "
                    f"rollout.request_timeout_seconds = {self._config.request_timeout_seconds:g}."
                )
            if pause > 0:  # not all at once when it opens
                pause += self._rng.uniform(0.0, FIRST_BACKOFF_SECONDS)
            pause = max(pause, ready_at.get(endpoint, 0.0) - clock())
            if pause <= 0:
                return endpoint
            await asyncio.sleep(min(pause, LOOK_AGAIN_SECONDS))

    async def _send_abort(self, endpoint: Endpoint, wire_ids: Sequence[str]) -> None:
        await self.api.abort(endpoint.url, wire_ids, ABORT_SECONDS)

    async def until_healthy(self, url: str, timeout_seconds: float) -> None:
        """Waits for a worker that somebody else starts.

        Raises:
            RuntimeError: If it does not answer within ``timeout_seconds``.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_seconds
        while not await self.api.is_healthy(url, HEALTH_SECONDS):
            if clock() > deadline:
                raise RuntimeError(f"{url} was not back within {timeout_seconds:g} s.")
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _is_sound(self, endpoint: Endpoint) -> bool:
        if not await self.api.is_healthy(endpoint.url, HEALTH_SECONDS):
            return False
        said = endpoint.version
        try:
            return await self.served_version(endpoint, HEALTH_SECONDS) == said
        except RuntimeError:
            return False
