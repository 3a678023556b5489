"""Bench: CPU that a call costs the client (at most 2 ms), against plain aiohttp with json.

    python tests/bench/client.py [--json] [--calls 2000]

The worker is tests/stub_server.py in a process of its own, so that only the client's time is counted; its
answers are as long as vLLM's, about 110 bytes of JSON a token. A call is one completion; the cases differ in
its tokens and in how many share a request.

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import prompt_of
from stub_server import StubOptions, stub_process

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.records import Prompt, Sampling

AT_ONCE = 64
PROMPT_TOKENS = 500
CASES = ((100, 1), (1000, 1), (1000, 8))
"""Tokens of a completion, completions of a request."""

Call = Callable[[Prompt, Sampling, int], Awaitable[int]]
"""Gives the number of tokens that came back."""


async def cpu_per_call(call: Call, calls: int, n: int, tokens: int) -> float:
    """Milliseconds of this process's CPU for each completion, after a warm-up."""
    slots = asyncio.Semaphore(AT_ONCE)
    prompts = [prompt_of(*range(i, i + PROMPT_TOKENS)) for i in range(calls // n)]

    async def one(prompt: Prompt, seed: int) -> None:
        async with slots:
            sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=100_000, seed=seed)
            assert await call(prompt, sampling, n) == tokens * n

    await asyncio.gather(*(one(prompt, i) for i, prompt in enumerate(prompts[:AT_ONCE])))
    started = time.process_time()
    await asyncio.gather(*(one(prompt, i) for i, prompt in enumerate(prompts)))
    return 1000 * (time.process_time() - started) / (len(prompts) * n)


async def ours(url: str, calls: int, n: int, tokens: int) -> float:
    """Our pool."""
    async with WorkerPool([Endpoint(url=url)], RolloutConfig()) as pool:

        async def call(prompt: Prompt, sampling: Sampling, n: int) -> int:
            completions = await pool.generate(prompt, sampling, n)
            return sum(len(completion.logprobs) for completion in completions)

        return await cpu_per_call(call, calls, n, tokens)


async def plain(url: str, calls: int, n: int, tokens: int) -> float:
    """aiohttp and json, without retries, routing or records."""
    async with aiohttp.ClientSession() as session:

        async def call(prompt: Prompt, sampling: Sampling, n: int) -> int:
            params = {"n": n, "seed": sampling.seed, "max_tokens": sampling.max_tokens, "logprobs": 0}
            body = {"token_ids": prompt.ids, "sampling_params": params}
            async with session.post(f"{url}/inference/v1/generate", json=body) as response:
                choices = (await response.json())["choices"]
            logprobs = [[entry["logprob"] for entry in choice["logprobs"]["content"]] for choice in choices]
            return sum(map(len, logprobs))

        return await cpu_per_call(call, calls, n, tokens)


def main() -> int:
    """Runs every case both ways and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    for tokens, n in CASES:
        with stub_process(StubOptions(median_tokens=tokens, sigma=0.0)) as url:
            mine = asyncio.run(ours(url, options.calls, n, tokens))
            theirs = asyncio.run(plain(url, options.calls, n, tokens))
        row = {"bench": "client", "case": f"{tokens} tokens, n={n}", "ours": round(mine, 3)}
        row |= {"theirs": round(theirs, 3), "ratio": round(theirs / mine, 2), "unit": "ms CPU/call"}
        print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
