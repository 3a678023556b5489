"""A stand-in for a vLLM worker on loopback: its wire format and slots, made-up tokens, simulated decode time.

In the same event loop: ``async with StubServer(StubOptions()) as stub: stub.url``. As a child process:
``with stub_process(StubOptions()) as url`` (or ``python tests/stub_server.py '{"slots": 32}'``, which prints
its URL and ends when its standard input closes).

What a sequence says depends on nothing but the request's seed plus the sample's index, as vLLM's does: its
length is log-normal, its tokens are ``filler`` followed by one of the ``tails``.
"""

import asyncio
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

PREFIX = "generate-tokens-"
"""vLLM puts it before the id of a request; an abort must name the whole."""
LOGPROB = "-1.2039728164672852"
"""As many digits as vLLM prints for a float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StubOptions:
    """What is simulated. Lengths in tokens, times in seconds."""

    slots: int = 32
    """Sequences that decode at once; the others wait in the order in which they came."""
    median_tokens: float = 100.0
    sigma: float = 1.0
    """Of the logarithm of the length; 0 makes all lengths equal."""
    seconds_per_token: float = 0.0
    filler: int = 70
    tails: Sequence[Sequence[int]] = ((1,),)
    """Ends of completions, drawn by seed; one that runs into max_tokens has none."""
    logprob: str = LOGPROB
    """Of every token, as written in the answer."""
    model: str | None = None
    """Path that it claims to serve."""
    max_model_len: int | None = None
    answer_seconds_per_token: float = 0.0
    """For which the whole server is busy with building an answer, and answers nothing else."""
    key: str = ""
    """What a bearer must bring to the paths that vLLM guards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One sampled sequence."""

    token_ids: list[int]
    finish: str


def planned(options: StubOptions, sampling_params: dict[str, Any], index: int) -> Sampled:
    """The whole sequence that sample ``index`` of a request gives when nobody aborts it."""
    rng = random.Random(sampling_params["seed"] + index)
    tail = list(rng.choice(options.tails))
    length = round(rng.lognormvariate(math.log(options.median_tokens), options.sigma))
    ids = [options.filler] * max(length - len(tail), 0) + tail
    limit = sampling_params["max_tokens"]
    return Sampled(token_ids=ids[:limit], finish="stop" if len(ids) <= limit else "length")


def answer_text(
    sequences: Sequence[Sampled], prompt_tokens: int, version: str, logprob: str = LOGPROB
) -> str:
    """The body of vLLM's answer to /inference/v1/generate with logprobs=0."""
    choices = []
    for index, sequence in enumerate(sequences):
        content = ",".join(
            f'{{"token_id":{i},"logprob":{logprob},"rank":3,'
            f'"top_logprobs":[{{"token_id":{i},"logprob":{logprob},"rank":3}}]}}'
            for i in sequence.token_ids
        )
        span = [{"version": version, "start": 0, "end": len(sequence.token_ids)}]
        choices.append(
            f'{{"index":{index},"finish_reason":"{sequence.finish}","stop_reason":null,'
            f'"token_ids":{json.dumps(sequence.token_ids)},"routed_experts":null,"sampling_mask":null,'
            f'"weight_versions":{json.dumps(span if sequence.token_ids else [])},'
            f'"logprobs":{{"content":[{content}]}}}}'
        )
    written = sum(len(sequence.token_ids) for sequence in sequences)
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + written,
        "completion_tokens": written,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    return f'{{"request_id":"","usage":{json.dumps(usage)},"choices":[{",".join(choices)}]}}'


class StubServer:
    """The server. Use as an async context manager; ``url`` is known inside."""

    def __init__(self, options: StubOptions | None = None) -> None:
        self.options = options or StubOptions()
        self.version = "default"
        self.requests = 0
        self.url = ""
        self._slots = asyncio.Semaphore(self.options.slots)
        self._aborts: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> "StubServer":
        app = web.Application(client_max_size=2**26, middlewares=[self._guard])
        self.add_routes(app)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    def add_routes(self, app: web.Application) -> None:
        """What the server answers to."""
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_post("/inference/v1/abort_requests", self._abort)
        app.router.add_get("/weight_info", self._weight_info)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/reset_prefix_cache", self._reset_cache)

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self.options.key
        is_guarded = key and request.path.startswith(("/v1", "/inference"))
        if is_guarded and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests += 1
        name = PREFIX + body.get("request_id", f"unnamed-{self.requests}")
        aborted = self._aborts.setdefault(name, asyncio.Event())
        try:
            params = body["sampling_params"]
            parts = [self._decode(planned(self.options, params, i), aborted) for i in range(params["n"])]
            sequences = await asyncio.gather(*parts) if len(parts) > 1 else [await parts[0]]
        finally:
            self._aborts.pop(name, None)
        written = sum(len(sequence.token_ids) for sequence in sequences)
        if self.options.answer_seconds_per_token:
            time.sleep(self.options.answer_seconds_per_token * written)
        text = answer_text(sequences, len(body["token_ids"]), self.version, self.options.logprob)
        return web.Response(text=text, content_type="application/json")

    async def _decode(self, sequence: Sampled, aborted: asyncio.Event) -> Sampled:
        pace = self.options.seconds_per_token
        if pace == 0:
            return sequence
        async with self._slots:
            started = asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(aborted.wait(), timeout=pace * len(sequence.token_ids))
            except TimeoutError:
                return sequence
            done = int((asyncio.get_running_loop().time() - started) / pace)
            return Sampled(token_ids=sequence.token_ids[:done], finish="abort")

    async def _abort(self, request: web.Request) -> web.Response:
        for name in (await request.json())["request_ids"]:
            if name in self._aborts:
                self._aborts[name].set()
        return web.Response()

    async def _weight_info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def _reset_cache(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True})

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": "policy", "root": self.options.model, "max_model_len": self.options.max_model_len}
        return web.json_response({"data": [card]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()


@contextmanager
def stub_process(options: StubOptions) -> Iterator[str]:
    """The server as a child process; gives its URL."""
    child = subprocess.Popen(
        [sys.executable, __file__, json.dumps(asdict(options))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=10)


async def _serve(options: StubOptions) -> None:
    async with StubServer(options) as stub:
        print(stub.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(StubOptions(**json.loads(sys.argv[1]))))
