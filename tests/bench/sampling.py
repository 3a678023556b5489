"""Bench: our workers over HTTP against vLLM in process, on the same requests and cores.

    python tests/bench/sampling.py [--json] [--policy FOLDER] [--problems 48] [--at-once 64]

``http`` makes single requests, so many at once: what client, HTTP and API server cost (at most 1.15 x the
wall time in process). ``pdr [8, 4, 1]`` is the operator on many problems; theirs does it as public scripts of
such methods do, stage by stage, each stage one ``LLM.generate`` for all problems. It is our operator's code,
on a sampler that waits for all of them, so both send the same kinds of prompts; sampled texts differ.

The policy is a Qwen3 of 0.9 M parameters that a few steps taught to write between a few and 400 tokens, about
log-normal, then a boxed answer; or give a folder. Neither loading nor a first small round is counted.

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation_fakes import Kept
from fakes import EvenIsCorrect, operator, problem, settings
from tiny import byte_tokenizer, tiny_model

from configs.schema import RolloutConfig
from rollout.engine import RolloutEngine
from rollout.evaluate import Job, evaluate
from rollout.operators import Operator
from rollout.prompts import Codec
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import Sampler
from rollout.worker import ONE_PROCESS

SCHEDULE = (8, 4, 1)
REQUESTS_PER_SLOT = 8
LIMIT_SECONDS = 1800.0
MAX_TOKENS = 448
LONGEST = 400
MEDIAN_TOKENS, SIGMA = 60.0, 0.8
WORKER = RolloutConfig(
    max_completion_length=MAX_TOKENS,
    max_model_len=8192,
    max_concurrency=4096,
    dtype="float32",
    kv_cache_gib=2,
    max_num_seqs=256,
)


def make_policy(folder: Path) -> None:
    """A policy whose answers have many lengths."""
    tokenizer = byte_tokenizer()
    model = tiny_model(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=8192,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = random.Random(0)
    start = tokenizer.encode("<|im_start|>assistant\n")
    for _ in range(150):
        rows = [start + _said(tokenizer, rng) for _ in range(8)]
        ids = torch.zeros(8, max(map(len, rows)), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            labels[index, len(start) : len(row)] = ids[index, len(start) : len(row)]
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _said(tokenizer: Any, rng: random.Random) -> list[int]:
    length = min(round(MEDIAN_TOKENS * rng.lognormvariate(0, SIGMA)), LONGEST)
    letters = "".join(rng.choices("abcdefgh ", k=length))
    return [*tokenizer.encode(f"{letters}\\boxed{{{rng.randrange(100)}}}"), tokenizer.eos_token_id]


class InProcess:
    """vLLM's ``LLM``, set up as our worker is."""

    def __init__(self, folder: Path) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            model=str(folder),
            dtype=WORKER.dtype,
            max_model_len=WORKER.max_model_len,
            max_num_seqs=WORKER.max_num_seqs,
            max_num_batched_tokens=max(8192, WORKER.max_model_len),
            enable_chunked_prefill=False,
            enforce_eager=True,
            distributed_executor_backend=ONE_PROCESS,
            logprobs_mode="processed_logprobs",
        )

    def generate(self, requests: Sequence[tuple[Prompt, Sampling, int]]) -> list[list[Completion]]:
        """All requests at once."""
        prompts = [{"prompt_token_ids": list(prompt.ids)} for prompt, _, _ in requests]
        params = [
            self._params(
                n=n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed,
                logprobs=0,
                detokenize=False,
            )
            for _, sampling, n in requests
        ]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [[_completion(choice, len(out.prompt_token_ids)) for choice in out.outputs] for out in outputs]


def _completion(choice: Any, prompt_tokens: int) -> Completion:
    ids = tuple(choice.token_ids)
    return Completion(
        token_ids=ids,
        logprobs=tuple(step[token].logprob for step, token in zip(choice.logprobs, ids, strict=True)),
        finish=choice.finish_reason,
        versions=(VersionSpan(version=0, start=0, end=len(ids)),),
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=len(ids)),
    )


@dataclass(slots=True)
class StageByStage:
    """A sampler that waits until every problem has asked, then asks ``LLM.generate`` for all."""

    llm: InProcess
    num_problems: int
    continues: bool = False
    _asked: list[tuple[tuple[Prompt, Sampling, int], asyncio.Future[list[Completion]]]] = field(
        default_factory=list
    )

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        answer: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        self._asked.append(((prompt, sampling, n), answer))
        if len(self._asked) == self.num_problems:  # each makes one request a stage
            asked, self._asked = self._asked, []
            completions = self.llm.generate([request for request, _ in asked])
            for (_, waiting), own in zip(asked, completions, strict=True):
                waiting.set_result(own)
        return await answer

    async def abort(self, request_ids: Collection[str]) -> None:
        raise NotImplementedError


def single_requests(codec: Codec, number: int, seed: int) -> list[tuple[Prompt, Sampling, int]]:
    """Different prompts of one question each."""
    return [
        (
            codec.prompt(f"question {seed} {i}: what is {i} + {i}?"),
            Sampling(temperature=1.0, top_p=1.0, max_tokens=MAX_TOKENS, seed=seed + i),
            1,
        )
        for i in range(number)
    ]


async def through(
    generate: Callable[..., Awaitable[Sequence[Completion]]],
    requests: Sequence[tuple[Prompt, Sampling, int]],
    at_once: int,
) -> int:
    """Makes single requests, so many at once; gives their tokens."""
    slots = asyncio.Semaphore(at_once)

    async def one(request: tuple[Prompt, Sampling, int]) -> int:
        async with slots:
            return sum(len(completion.token_ids) for completion in await generate(*request))

    return sum(await asyncio.gather(*map(one, requests)))


async def through_operator(sampler: Sampler, codec: Codec, pdr: Operator, num_problems: int) -> int:
    """Runs the operator on problems; gives its tokens."""
    sink = Kept()
    jobs = [Job(problem=problem(f"p{i}"), operator=pdr, sample=0) for i in range(num_problems)]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=MAX_TOKENS, seed=0)
    ours = replace(settings(sampler), sampling=sampling, codec=codec)
    await evaluate(jobs, ours, EvenIsCorrect(), sink, seed=0, max_in_flight=num_problems)
    return sum(len(call.completion_ids) for rollout in sink.rollouts for call in rollout.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one side."""

    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def _timed(work: Callable[[], int]) -> Speed:
    started = time.perf_counter()
    tokens = work()
    return Speed(seconds=time.perf_counter() - started, tokens=tokens)


def ours(folder: Path, problems: int, at_once: int) -> dict[str, Speed]:
    """Through our engine and its worker."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    with (
        tempfile.TemporaryDirectory() as logs,
        RolloutEngine(WORKER, str(folder), Path(logs)) as engine,
    ):
        generate = engine.pool.generate

        def single(number: int, seed: int) -> int:
            requests = single_requests(codec, number, seed)
            return engine.run(through(generate, requests, at_once), LIMIT_SECONDS)

        def whole() -> int:
            pdr = operator(SCHEDULE, "all")
            return engine.run(through_operator(engine.pool, codec, pdr, problems), LIMIT_SECONDS)

        single(at_once, 10**6)
        return {
            "http": _timed(lambda: single(REQUESTS_PER_SLOT * at_once, 0)),
            "pdr": _timed(whole),
        }


def theirs(folder: Path, problems: int, at_once: int) -> dict[str, Speed]:
    """In this process."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    WORKER.max_num_seqs = at_once  # in process nothing else bounds what runs at once
    llm = InProcess(folder)

    def single(number: int, seed: int) -> int:
        answers = llm.generate(single_requests(codec, number, seed))
        return sum(len(completion.token_ids) for answer in answers for completion in answer)

    single(at_once, 10**6)
    return {"http": _timed(lambda: single(REQUESTS_PER_SLOT * at_once, 0))}


def theirs_by_stages(folder: Path, problems: int) -> dict[str, Speed]:
    """The operator in this process, stage by stage."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    llm = InProcess(folder)
    llm.generate(single_requests(codec, 64, 10**6))
    sampler = StageByStage(llm=llm, num_problems=problems)
    work = through_operator(sampler, codec, operator(SCHEDULE, "all"), problems)
    return {"pdr": _timed(lambda: asyncio.run(work))}


def in_a_process(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Speed]:
    """A side of its own process: vLLM binds threads, and must not have torch started before."""
    command = [sys.executable, __file__, "--side", side, "--policy", str(folder)]
    command += ["--problems", str(options.problems), "--at-once", str(options.at_once)]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": str(WORKER.kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",  # as our worker's on two cores
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, env=environment
    )
    if done.returncode:
        sys.exit(f"sampling: {side} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Speed(**speed) for name, speed in found.items()}


def main() -> int:
    """Runs both sides and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policy", type=Path, help="HF folder")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "ours":
            found = ours(options.policy, options.problems, options.at_once)
        elif options.side == "theirs":
            found = theirs(options.policy, options.problems, options.at_once)
        else:
            found = theirs_by_stages(options.policy, options.problems)
        print(json.dumps({name: asdict(speed) for name, speed in found.items()}))
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = options.policy or Path(made)
        if options.policy is None:
            make_policy(folder)
        mine = in_a_process("ours", folder, options)
        their = in_a_process("theirs", folder, options) | in_a_process("by-stages", folder, options)
    cases = {"http": f"http, {options.at_once} at once", "pdr": f"pdr {list(SCHEDULE)}"}
    for name, case in cases.items():
        row = {"bench": "rollout", "case": case, "ours": round(mine[name].rate)}
        row |= {"theirs": round(their[name].rate), "ratio": round(mine[name].rate / their[name].rate, 3)}
        row["unit"] = "tokens/s"
        print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
