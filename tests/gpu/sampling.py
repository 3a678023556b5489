"""Sampling over HTTP through this project's client and worker, against ``LLM.generate`` on the same requests.

    python tests/gpu/sampling.py [--device cuda|cpu] [--size full|tiny] [--model FOLDER]

``traces`` are groups of 8 under a question each. ``pdr`` are problems of the shape [8, 4, 1]: drafts, then
refinements whose prompt is the drafts, then one more; this project makes each stage of a problem as soon as
the one before is done, ``LLM`` one stage of all problems after the other. Prompts and lengths are drawn by a
seed and do not depend on what is sampled, so both sides get the very same requests. On a GPU both with CUDA
graphs and without; on a CPU without.

Prints one JSON object per figure. Fails if the first tokens of the two sides differ in more than one sample
of ten: seeds and prompts are the same, so only rounding may part them.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_requests import CASES, SIZES, Request, Samples, Size, bytes_read
from gpu_script import parser_of, teller

from configs.schema import RolloutConfig
from launch.plan.architecture import architecture_of

tell = teller("sampling")
READY = "ready"
TARGET = 0.85
"""Least ratio to ``LLM.generate`` in tokens per second, with graphs."""
AGREE = 0.9
"""Least share of samples with equal first tokens."""


def worker_options(size: Size, device: str, *, eager: bool) -> RolloutConfig:
    """Returns the options of our worker, which ``LLM`` gets as well."""
    longest = size.question + 4 * size.median + 4 * size.median
    return RolloutConfig(
        dtype="bfloat16" if device == "cuda" else "float32",
        max_completion_length=4 * size.median,
        max_model_len=longest + 8,
        max_num_seqs=size.max_num_seqs,
        max_concurrency=4 * size.max_num_seqs,
        kv_cache_gib=1,
        gpu_memory_utilization=0.4,
        enforce_eager="true" if eager else "false",
    )


def serve_llm(options: argparse.Namespace) -> None:
    """The other side, in a process of its own: answers each line, a list of requests, with tokens."""
    from vllm import LLM, SamplingParams

    from rollout.workers.local_worker import ONE_PROCESS

    given = worker_options(SIZES[options.size], options.device, eager=options.eager)
    more: dict[str, Any] = {"gpu_memory_utilization": given.gpu_memory_utilization}
    if options.device == "cpu":  # as our worker
        more = {"distributed_executor_backend": ONE_PROCESS, "enable_chunked_prefill": False}
        more["max_num_batched_tokens"] = max(8192, given.max_model_len)
    llm = LLM(
        model=str(options.model),
        dtype=given.dtype,
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        enforce_eager=options.eager,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        skip_tokenizer_init=True,
        **more,
    )
    print(READY, flush=True)
    for line in sys.stdin:
        requests = [Request(**request) for request in json.loads(line)]
        params = [
            SamplingParams(
                n=r.n, temperature=1.0, max_tokens=r.max_tokens, seed=r.seed, logprobs=0, detokenize=False
            )
            for r in requests
        ]
        prompts: Any = [{"prompt_token_ids": r.ids} for r in requests]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        texts = [[list(choice.token_ids) for choice in output.outputs] for output in outputs]
        print(f"{READY} {json.dumps(texts)}", flush=True)


class OtherSide:
    """``LLM`` in its process."""

    def __init__(self, options: argparse.Namespace, folder: Path, *, eager: bool) -> None:
        command = [sys.executable, __file__, "--llm", "--device", options.device, "--size", options.size]
        command += ["--model", str(folder), *(["--eager"] if eager else [])]
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read(self) -> str:
        """Returns the next line of ours, as vLLM also writes to standard output."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY)
        raise RuntimeError(f"LLM ended with status {self._process.wait()}.")

    def generate(self, requests: Sequence[Request]) -> list[list[list[int]]]:
        """Returns the ids of each sample of each request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([asdict(request) for request in requests]) + "\n")
        self._process.stdin.flush()
        return json.loads(self.read())

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(60)


def theirs(side: OtherSide, problems: list[list[list[Request]]]) -> Samples:
    """Makes one stage of all problems after the other."""
    stages = range(len(problems[0]))
    made = [side.generate([r for problem in problems for r in problem[stage]]) for stage in stages]
    return [samples for stage in made for samples in stage]


async def ours(pool: Any, problems: list[list[list[Request]]]) -> Samples:
    """Makes the stages of each problem in turn, all problems at once; in the order of ``theirs``."""
    from rollout.records import Prompt, Sampling

    async def one(request: Request) -> list[list[int]]:
        prompt = Prompt(text="", ids=tuple(request.ids), context=str(request.seed))
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=request.max_tokens, seed=request.seed)
        return [list(c.token_ids) for c in await pool.generate(prompt, sampling, request.n)]

    async def problem(stages: list[list[Request]]) -> list[list[list[list[int]]]]:
        return [await asyncio.gather(*map(one, stage)) for stage in stages]

    made = await asyncio.gather(*map(problem, problems))
    stages = range(len(problems[0]))
    return [samples for stage in stages for of_problem in made for samples in of_problem[stage]]


def _timed(work: Any) -> tuple[Samples, float]:
    started = time.perf_counter()
    samples = work()
    return samples, _tokens(samples) / (time.perf_counter() - started)


def _tokens(samples: Samples) -> int:
    return sum(len(ids) for group in samples for ids in group)


def compare(options: argparse.Namespace, folder: Path, logs: Path, *, eager: bool) -> bool:
    """Measures both sides; returns True if they agree."""
    from rollout.engine import RolloutEngine

    size, kind = SIZES[options.size], "eager" if eager else "graphs"
    config = worker_options(size, options.device, eager=eager)
    agree = True
    began = time.perf_counter()
    side = OtherSide(options, folder, eager=eager)
    try:
        if options.device == "cuda":
            side.read()  # one after the other: each measures the free memory while it starts
            tell(f"LLM starts, {kind}", round(time.perf_counter() - began, 1), "s")
        began = time.perf_counter()
        with RolloutEngine(config, str(folder), logs) as engine:
            tell(f"worker starts, {kind}", round(time.perf_counter() - began, 1), "s")
            if options.device != "cuda":
                side.read()
            for name, make in CASES.items():
                problems = make(size)
                warm = [[[replace(r, seed=r.seed + 1) for r in stage] for stage in p] for p in problems[:4]]
                theirs(side, warm)
                engine.run(ours(engine.pool, warm), 600, what="the first requests")
                their, their_rate = _timed(lambda p=problems: theirs(side, p))
                mine, my_rate = _timed(
                    lambda p=problems: engine.run(ours(engine.pool, p), 600, what="the requests")
                )
                firsts = [
                    a[:1] == b[:1]
                    for m, t in zip(mine, their, strict=True)
                    for a, b in zip(m, t, strict=True)
                ]
                share = sum(firsts) / len(firsts)
                agree &= share >= AGREE
                tell(f"{name}, {kind}", round(my_rate), "tokens/s")
                if name == "traces" and options.device == "cuda":
                    read = bytes_read(problems, mine, folder) * my_rate / _tokens(mine) / 1e9
                    tell(f"{name}, {kind}: memory read by decoding", round(read, 1), "GB/s")
                tell(f"{name} by LLM.generate, {kind}", round(their_rate), "tokens/s")
                goal = None if eager else TARGET
                tell(f"{name}, {kind}, against LLM.generate", round(my_rate / their_rate, 3), "x", goal)
                tell(f"{name}, {kind}, equal first tokens", round(share, 3), "share", AGREE)
    finally:
        side.close()
    return agree


def save_policy(folder: Path, size: Size, device: str) -> None:
    """Saves a random policy with a tokenizer of bytes."""
    import torch
    from tiny import byte_tokenizer, tiny_model

    model = tiny_model(**size.model, max_position_embeddings=8192)
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def main() -> int:
    """Runs the comparison; returns 1 if the sides do not agree."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--llm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--eager", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.llm:
        serve_llm(options)
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or Path(made, "policy")
        if options.model is None:
            save_policy(folder, SIZES[options.size], options.device)
        tell("parameters of the model", round(architecture_of(str(folder)).parameters / 1e6, 1), "M")
        kinds = (False, True) if options.device == "cuda" else (True,)
        agreed = [compare(options, folder, Path(made, "logs"), eager=eager) for eager in kinds]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
