"""``Sampler`` on a pool of vLLM workers: retries, limits, restarts, aborts."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

from configs.schema import RolloutConfig
from rollout.endpoints.client import (
    FIRST_BACKOFF_SECONDS,
    Client,
    RequestCounts,
    Unavailable,
    backoff_seconds,
)
from rollout.endpoints.engine_api import Answer, Asked, EngineApi
from rollout.endpoints.keys import KEY_VARIABLE
from rollout.endpoints.open_requests import ABORT_SECONDS, OpenRequest, OpenRequests, never_sent
from rollout.endpoints.probing import HEALTH_SECONDS, Prober
from rollout.endpoints.restarts import Restarter
from rollout.endpoints.routing import Endpoint, Router
from rollout.endpoints.slots import SequenceSlots
from rollout.endpoints.vllm_api import VllmApi
from rollout.records import Completion, Prompt, Sampling
from rollout.sampler import CallFailed

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 1.0
"""Interval at which a waiting request checks for another usable worker, and a wait for a worker probes it."""


class WorkerPool:
    """``Sampler`` on vLLM workers; requests that a broken worker did not answer are sent again.

    Use as an async context manager; bound to the event loop that entered it.
    """

    continues = True

    def __init__(self, endpoints: Sequence[Endpoint], config: RolloutConfig, key: str | None = None) -> None:
        """``key`` None: that of the environment, if it has one."""
        self.endpoints = list(endpoints)
        self.counts = RequestCounts()
        self.published_version = 0
        """Newest version that workers may serve; a publisher sets it before any worker serves it."""
        self.restarter = Restarter(self._is_sound)
        self.before_close: Callable[[], Awaitable[None]] | None = None
        """Called when the pool is left: a publisher ends what it keeps open."""
        self._config = config
        self._client = Client(KEY_VARIABLE, config.request_timeout_seconds, key)
        self.api: EngineApi = VllmApi(self._client, has_adapter=bool(config.max_lora_rank))
        """HTTP interface of the workers, for callers that need more than samples."""
        self._prober = Prober(lambda url, seconds: self.api.is_healthy(url, seconds), config.max_num_seqs)
        self._router = Router()
        self._slots = SequenceSlots(config.max_concurrency)
        self._open_requests = OpenRequests(self._send_abort)
        self._rng = random.Random()  # only spreads retries in time

    async def __aenter__(self) -> "WorkerPool":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.restarter.close()
        try:
            if self.before_close is not None:
                await self.before_close()
        finally:
            await self._prober.close()
            await self._client.__aexit__()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> list[Completion]:
        """Returns ``n`` completions of one context (``Sampler.generate``).

        They are split into requests of at most ``rollout.samples_per_request``, which may go to different
        workers. Sample i is drawn with the seed ``sampling.seed + i``, however they are split.

        Raises:
            RequestRefused: If the worker refuses the request, e.g. because the prompt is too long.
            CallFailed: If no worker answered after ``max_retries`` further attempts, or the worker broke
                after the request was aborted.
        """
        # vLLM refuses n > 1 with greedy sampling.
        most = self._config.samples_per_request if sampling.temperature > 0 else 1
        parts = _parts(n, min(most, self._config.max_concurrency))
        if len(parts) == 1:
            return await self._request(prompt, sampling, n, request_id, request_id)

        def request(part: range) -> Awaitable[list[Completion]]:
            # vLLM draws sample i of a request with the seed of the request plus i.
            own = replace(sampling, seed=sampling.seed + part.start)
            # All parts share the name ``request_id``, but ids at a worker must differ.
            wire_id = None if request_id is None else f"{request_id}-{part.start}"
            return self._request(prompt, own, len(part), request_id, wire_id)

        tasks = [asyncio.ensure_future(request(part)) for part in parts]
        try:
            return [completion for made in await asyncio.gather(*tasks) for completion in made]
        finally:
            for task in tasks:  # if one failed, the others would go on for nobody
                task.cancel()

    async def abort(self, request_ids: Collection[str]) -> None:
        """Ends requests early (``Sampler.abort``); returns when their answers have arrived.

        Only the worker that has a request is notified. A request that no worker has yet returns no tokens. If
        a worker takes longer than ``open_requests.ABORT_SECONDS`` to answer, ``generate`` fails.
        """
        await self._open_requests.abort(request_ids)

    async def served_version(self, endpoint: Endpoint, timeout: float = 30.0) -> int:
        """Asks a worker for the policy version that it serves, stores it in ``endpoint`` and returns it.

        Raises:
            RuntimeError: If the worker does not answer within ``timeout`` seconds.
        """
        endpoint.version = await self.api.weight_version(endpoint.url, timeout)
        return endpoint.version

    async def _request(
        self, prompt: Prompt, sampling: Sampling, n: int, request_id: str | None, wire_id: str | None
    ) -> list[Completion]:
        """Sends one request, named ``request_id`` for ``abort`` and ``wire_id`` at its worker."""
        request = OpenRequest(wire_id=wire_id)
        if request_id is None:
            return await self._send(request, prompt, sampling, n)
        request.work = asyncio.create_task(self._send(request, prompt, sampling, n))
        with self._open_requests.under(request_id, request):
            try:
                return await request.work
            except asyncio.CancelledError:
                # Either ``abort`` cancelled the request's work, or the caller of ``generate`` was cancelled:
                # only the second is passed on.
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
        # Per worker, for this request alone: the end of its backoff and its failures.
        ready_at: dict[Endpoint, float] = {}
        failures: Counter[Endpoint] = Counter()
        cause = ""
        # The slots are held through all retries, so that retries do not add to the load.
        async with self._slots.of(n):
            for attempt in range(self._config.max_retries + 1):
                endpoint = await self._turn(prompt.context, failures, ready_at)
                self.counts.requests += 1
                self.counts.retries += attempt > 0
                try:
                    with request.at(endpoint, n):
                        async with self._prober.watching(endpoint, n, sampling.max_tokens):
                            answer = await self.api.generate(endpoint.url, body)
                    # A server that shuts down aborts its own requests; those are sent again.
                    if answer.is_aborted and not request.is_aborted:
                        raise Unavailable(f"{endpoint.url} aborted a request without being asked to.")
                    completions = self._checked(answer, endpoint, prompt, sampling, n)
                except Unavailable as error:
                    cause = str(error)
                    # Its tokens are lost with the worker, and an aborted request is not retried.
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
                    return completions
        raise CallFailed(
            f"No rollout worker answered after {self._config.max_retries + 1} attempts; "
            f"the last failure: {cause}"
        )

    def _checked(
        self, answer: Answer, endpoint: Endpoint, prompt: Prompt, sampling: Sampling, n: int
    ) -> list[Completion]:
        """Returns the samples of an answer.

        Raises:
            Unavailable: If the answer is impossible, so that another worker is tried.
        """
        newest = max(self.published_version, *(each.version for each in self.endpoints))
        asked = Asked(
            prompt_tokens=len(prompt.ids),
            n=n,
            max_tokens=sampling.max_tokens,
            version=endpoint.version,
            newest_version=newest,
        )
        try:
            return answer.completions(asked)
        except ValueError as error:
            raise Unavailable(f"{endpoint.url} answered with {error}.") from error

    def _note_failure(self, endpoint: Endpoint, error: Unavailable) -> None:
        """Diverts requests from a worker that failed, and starts a check of it unless it was only busy."""
        now = asyncio.get_running_loop().time()
        if now >= endpoint.avoid_until:  # one message for all requests that a broken worker had
            logger.warning("A request failed and will be retried if attempts are left: %s", error)
        endpoint.failed(now, error.retry_after)
        if not error.is_busy:
            self.restarter.begin(endpoint)

    async def _turn(
        self, context: str, failures: Counter[Endpoint], ready_at: dict[Endpoint, float]
    ) -> Endpoint:
        """Chooses a worker, waits for its backoff or ``Retry-After`` to pass, and returns it."""
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
            if pause > 0:  # spreads the waiting requests, which otherwise would all be sent at once
                pause += self._rng.uniform(0.0, FIRST_BACKOFF_SECONDS)
            pause = max(pause, ready_at.get(endpoint, 0.0) - clock())
            if pause <= 0:
                return endpoint
            # A short sleep, after which the choice is repeated: another worker may be usable by then.
            await asyncio.sleep(min(pause, LOOK_AGAIN_SECONDS))

    async def _send_abort(self, endpoint: Endpoint, wire_ids: Sequence[str]) -> None:
        await self.api.abort(endpoint.url, wire_ids, ABORT_SECONDS)

    async def until_healthy(self, url: str, timeout_seconds: float) -> None:
        """Waits until a worker that is started elsewhere is healthy.

        Raises:
            RuntimeError: If the worker is not healthy within ``timeout_seconds``.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_seconds
        while not await self.api.is_healthy(url, HEALTH_SECONDS):
            if clock() > deadline:
                raise RuntimeError(f"{url} was not back within {timeout_seconds:g} s.")
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _is_sound(self, endpoint: Endpoint) -> bool:
        limit = HEALTH_SECONDS + self._prober.patience(endpoint)
        if not await self.api.is_healthy(endpoint.url, limit):
            return False
        # A worker restarted by its owner is healthy but serves the model's original weights.
        said = endpoint.version
        try:
            await self.api.check_key(endpoint.url, limit)
            return await self.served_version(endpoint, limit) == said
        except RuntimeError:
            return False


def _parts(n: int, most: int) -> list[range]:
    """Returns the samples 0 to n - 1 as consecutive parts of at most ``most``, as even as possible."""
    number = -(-n // most)
    return [range(i * n // number, (i + 1) * n // number) for i in range(number)]
