"""Bench: our workers over HTTP against vLLM in process, on the same requests and cores.

    python tests/bench/sampling.py [--json] [--policy FOLDER] [--problems 48] [--at-once 64] [--repeat 3]

``http`` makes single requests, of which a worker decodes so many at once: what client, HTTP and API server
cost (at most 1.15 x the wall time in process). ``pdr [8, 4, 1]`` is the operator on many problems; theirs
does it as public scripts of such methods do, stage by stage, each stage one ``LLM.generate`` for all
problems. It is our operator's code, on a sampler that waits for all of them, so both send the same kinds of
prompts; sampled texts differ. The two take turns, and count by all their rounds together.

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
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
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
from rollout.codec import Codec
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import PlannedRollout, evaluate
from rollout.operators import Operator
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import Sampler
from rollout.workers.local_worker import KEPT_MEMORY, ONE_PROCESS

Round = Callable[[], int]
"""Gives the tokens that it made."""
SCHEDULE = (8, 4, 1)
REQUESTS_PER_SLOT = 4
LIMIT_SECONDS = 1800.0
MAX_TOKENS = 448
READY = "ready to go"
LONGEST = 400
TRAINING_STEPS = 120
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
    """A policy whose answers have many lengths, whatever it is asked and however long that is."""
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
    codec = Codec(tokenizer=tokenizer)
    for _ in range(TRAINING_STEPS):
        asked = [list(codec.prompt(_letters(rng, round(10 * 80 ** rng.random()))).ids) for _ in range(8)]
        rows = [(prompt, _said(tokenizer, rng)) for prompt in asked]
        ids = torch.zeros(8, max(len(prompt) + len(said) for prompt, said in rows), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for index, (prompt, said) in enumerate(rows):
            end = len(prompt) + len(said)
            ids[index, :end] = torch.tensor(prompt + said)
            labels[index, len(prompt) : end] = ids[index, len(prompt) : end]
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _letters(rng: random.Random, number: int) -> str:
    return "".join(rng.choices("abcdefgh ", k=number))


def _said(tokenizer: Any, rng: random.Random) -> list[int]:
    length = min(round(MEDIAN_TOKENS * rng.lognormvariate(0, SIGMA)), LONGEST)
    said = f"{_letters(rng, length)}\\boxed{{{rng.randrange(100)}}}"
    return [*tokenizer.encode(said), tokenizer.eos_token_id]


class InProcess:
    """vLLM's ``LLM``, set up as our worker is."""

    def __init__(self, folder: Path, max_num_seqs: int) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            model=str(folder),
            dtype=WORKER.dtype,
            max_model_len=WORKER.max_model_len,
            max_num_seqs=max_num_seqs,
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
) -> int:
    """Makes single requests; gives their tokens."""
    answers = await asyncio.gather(*(generate(*request) for request in requests))
    return sum(len(completion.token_ids) for answer in answers for completion in answer)


async def through_operator(sampler: Sampler, codec: Codec, pdr: Operator, num_problems: int) -> int:
    """Runs the operator on problems; gives its tokens."""
    sink = Kept()
    jobs = [PlannedRollout(problem=problem(f"p{i}"), operator=pdr, sample=0) for i in range(num_problems)]
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


def timed(work: Round) -> Speed:
    """Of one round."""
    started = time.perf_counter()
    tokens = work()
    return Speed(seconds=time.perf_counter() - started, tokens=tokens)


@contextmanager
def ours_http(folder: Path, options: argparse.Namespace) -> Iterator[Round]:
    """Single requests through our engine and its worker."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    with _engine(folder, max_num_seqs=options.at_once) as engine:

        def single(number: int = REQUESTS_PER_SLOT * options.at_once, seed: int = 0) -> int:
            requests = single_requests(codec, number, seed)
            return engine.run(through(engine.pool.generate, requests), LIMIT_SECONDS, what="single requests")

        single(options.at_once, seed=10**6)
        yield single


@contextmanager
def ours_pdr(folder: Path, options: argparse.Namespace) -> Iterator[Round]:
    """The operator through our engine and its worker."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    with _engine(folder) as engine:

        def whole() -> int:
            pdr = operator(SCHEDULE, "all")
            work = through_operator(engine.pool, codec, pdr, options.problems)
            return engine.run(work, LIMIT_SECONDS, what="the operator's rollouts")

        first = single_requests(codec, options.at_once, 10**6)
        engine.run(through(engine.pool.generate, first), LIMIT_SECONDS, what="the first requests")
        yield whole


@contextmanager
def _engine(folder: Path, **changes: Any) -> Iterator[RolloutEngine]:
    worker = replace(WORKER, **changes)
    with tempfile.TemporaryDirectory() as logs, RolloutEngine(worker, str(folder), Path(logs)) as engine:
        yield engine


@contextmanager
def theirs_http(folder: Path, options: argparse.Namespace) -> Iterator[Round]:
    """Single requests in this process."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    llm = InProcess(folder, max_num_seqs=options.at_once)

    def single(number: int = REQUESTS_PER_SLOT * options.at_once, seed: int = 0) -> int:
        answers = llm.generate(single_requests(codec, number, seed))
        return sum(len(completion.token_ids) for answer in answers for completion in answer)

    single(options.at_once, seed=10**6)
    yield single


@contextmanager
def theirs_pdr(folder: Path, options: argparse.Namespace) -> Iterator[Round]:
    """The operator in this process, stage by stage."""
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    llm = InProcess(folder, max_num_seqs=WORKER.max_num_seqs)
    llm.generate(single_requests(codec, options.at_once, 10**6))

    def whole() -> int:
        sampler = StageByStage(llm=llm, num_problems=options.problems)
        pdr = operator(SCHEDULE, "all")
        return asyncio.run(through_operator(sampler, codec, pdr, options.problems))

    yield whole


SIDES = {"ours-http": ours_http, "theirs-http": theirs_http, "ours-pdr": ours_pdr, "theirs-pdr": theirs_pdr}


def serve(side: str, folder: Path, options: argparse.Namespace) -> None:
    """Makes a round for each line that comes in, and says how fast it was."""
    with SIDES[side](folder, options) as work:
        print(READY, flush=True)
        for _ in sys.stdin:
            print(json.dumps(asdict(timed(work))), flush=True)


class Side:
    """A side in a process of its own: vLLM binds threads, and must not have torch started before."""

    def __init__(self, side: str, folder: Path, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--side", side, "--policy", str(folder)]
        command += ["--problems", str(options.problems), "--at-once", str(options.at_once)]
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": str(WORKER.kv_cache_gib),
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",  # as our worker's on two cores
            "GLIBC_TUNABLES": KEPT_MEMORY,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self._name = side
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._limit = threading.Timer(LIMIT_SECONDS, self._process.kill)
        self._limit.daemon = True
        self._limit.start()

    def read(self, start: str) -> str:
        """The next line that begins so; vLLM also writes to standard output."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        sys.exit(f"sampling: {self._name} ended with status {self._process.wait()}.")

    def round(self) -> Speed:
        """One round."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return Speed(**json.loads(self.read("{")))

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LIMIT_SECONDS)
        self._limit.cancel()


def compare(name: str, folder: Path, options: argparse.Namespace) -> tuple[Speed, Speed]:
    """All rounds of each side; they take turns, so that a machine that changes does so for both."""
    sides = [Side(f"{who}-{name}", folder, options) for who in ("ours", "theirs")]
    for side in sides:
        side.read(READY)
    rounds = [[side.round() for side in sides] for _ in range(options.repeat)]
    for side in sides:
        side.close()
    mine, their = (_together(of_side) for of_side in zip(*rounds, strict=True))
    return mine, their


def _together(rounds: Sequence[Speed]) -> Speed:
    return Speed(tokens=sum(one.tokens for one in rounds), seconds=sum(one.seconds for one in rounds))


def main() -> int:
    """Runs both sides and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policy", type=Path, help="HF folder")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.policy, options)
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = options.policy or Path(made)
        if options.policy is None:
            make_policy(folder)
        cases = {"http": f"http, {options.at_once} at once", "pdr": f"pdr {list(SCHEDULE)}"}
        for name, case in cases.items():
            mine, their = compare(name, folder, options)
            row = {"bench": "rollout", "case": case, "ours": round(mine.rate), "theirs": round(their.rate)}
            row |= {"ratio": round(mine.rate / their.rate, 3), "unit": "tokens/s"}
            print(f"{case}: rounds of {mine.tokens} and {their.tokens} tokens", file=sys.stderr)
            print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
