"""A scripted policy: the seam is the ``Sampler``, everything behind it is the real code."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiny import byte_tokenizer

from configs.schema import PromptsConfig
from configs.thinking import ThinkingMarks
from rollout.codec import Codec
from rollout.distiller import DistillerOptions
from rollout.grading import Attempt
from rollout.operators import Operator, OperatorOptions, run_operator
from rollout.placeholders import PLACEHOLDERS
from rollout.policy import Policy
from rollout.policy_settings import PolicySettings
from rollout.prompts import PromptTexts
from rollout.records import Completion, Problem, Prompt, Rollout, Sampling, Usage, VersionSpan, context_key
from rollout.sampler import Sampler
from rollout.siblings import OPERATORS

CODEC = Codec(tokenizer=byte_tokenizer())
END = 1
"""The id that ends a completion of the byte tokenizer."""
PROMPTS = PromptTexts(
    solve="SOLVE {question}",
    draft="[{number}] {solution}",
    refine="REFINE {question} WORKSPACE {workspace}",
    distil="DISTIL {question} FROM {drafts} IN {kappa}",
    verify="VERIFY {question} SAYS {solution}",
    analyse="ANALYSE {question} SAYS {solution}",
    analysis="{draft} ERRORS {analysis}",
    update="UPDATE {question} HAVING {workspace} FROM {drafts} IN {kappa}",
    select="SELECT {question} AMONG {drafts}",
)
PROMPTS_CONFIG = PromptsConfig(**{name: getattr(PROMPTS, name) for name in PLACEHOLDERS})
"""The options that ``PROMPTS`` is made from."""
KINDS = ("SOLVE", "REFINE", "DISTIL", "VERIFY", "ANALYSE", "UPDATE", "SELECT")


def prompt_of(*ids: int) -> Prompt:
    """A prompt of nothing but ids, as a worker sees it."""
    return Prompt(text="", ids=ids, context=context_key(ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the script says; ``length`` as finish leaves the end of sequence out."""

    text: str
    finish: str = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the worker would see it, with its prompt as text."""

    kind: str
    prompt: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    n: int


Script = Callable[[Request, random.Random], Reply | str]
"""Gives one completion; the generator is seeded by the request's seed and the sample's index."""


def boxed(request: Request, rng: random.Random) -> str:
    """A well-formed completion that differs from sample to sample."""
    if request.kind == "VERIFY":
        return f"<think>hm</think>\\boxed{{{rng.choice(['yes', 'no'])}}}"
    number = rng.randrange(10**6)
    return f"<think>secret thought {number}</think>solution {number} is \\boxed{{{number}}}"


@dataclass(slots=True)
class ScriptedPolicy:
    """Answers as ``script`` says, ``delay`` seconds later; remembers every request and every end."""

    script: Script = boxed
    delay: Callable[[Request], float] = lambda request: 0.0
    continues: bool = True
    requests: list[Request] = field(default_factory=list)
    ended: list[Request] = field(default_factory=list)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        text = prompt.text.partition("<|im_end|>")[0]
        kind = next(kind for kind in KINDS if text.startswith(kind))
        request = Request(kind=kind, prompt=text, prompt_ids=prompt.ids, sampling=sampling, n=n)
        self.requests.append(request)
        await asyncio.sleep(self.delay(request))
        self.ended.append(request)
        return [self._completion(request, index) for index in range(n)]

    def _completion(self, request: Request, index: int) -> Completion:
        reply = self.script(request, random.Random(f"{request.sampling.seed} {index}"))
        reply = Reply(text=reply) if isinstance(reply, str) else reply
        ids = CODEC.tokenizer(reply.text, add_special_tokens=False).input_ids
        ids = (*ids, END) if reply.finish == "stop" else tuple(ids)
        return Completion(
            token_ids=tuple(ids),
            logprobs=(-1.0,) * len(ids),
            finish=reply.finish,
            versions=(VersionSpan(version=0, start=0, end=len(ids)),),
            usage=Usage(prompt_tokens=len(request.prompt_ids), completion_tokens=len(ids)),
        )

    async def abort(self, request_ids: Collection[str]) -> None:
        raise AssertionError("nothing is aborted here")

    def of(self, kind: str) -> list[Request]:
        """The requests of one kind, in the order in which they came."""
        return [request for request in self.requests if request.kind == kind]


@dataclass(frozen=True, slots=True)
class SamplerOf:
    """A sampler that is one function: ``await generate(prompt, sampling, n)``."""

    function: Callable[[Prompt, Sampling, int], Awaitable[Sequence[Completion]]]
    continues: bool = True

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        return await self.function(prompt, sampling, n)

    async def abort(self, request_ids: Collection[str]) -> None:
        raise AssertionError("nothing is aborted here")


def settings(
    sampler: Sampler,
    marks: ThinkingMarks | None = None,
    *,
    codec: Codec = CODEC,
    prompts: PromptTexts = PROMPTS,
) -> PolicySettings:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, seed=0)
    return PolicySettings(
        sampler=sampler,
        codec=codec,
        prompts=prompts,
        marks=marks or ThinkingMarks(),
        sampling=sampling,
    )


def distiller_options(name: str = "shared_topk", *, top_k: int = 4, kappa: int = 4096) -> DistillerOptions:
    return DistillerOptions(name=name, top_k=top_k, kappa=kappa)


def operator(
    schedule: Sequence[int],
    distiller: str = "shared_topk",
    *,
    top_k: int = 4,
    kappa: int = 4096,
    name: str = "pdr",
    **options: Any,
) -> Operator:
    return OPERATORS[name](
        OperatorOptions(
            name=name,
            schedule=tuple(schedule),
            distil=distiller_options(distiller, top_k=top_k, kappa=kappa),
            **options,
        )
    )


def problem(name: str = "p") -> Problem:
    return Problem(id=name, question=f"question {name}", answer="7")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A verdict: correct if the boxed number is even."""

    status: str
    answer: str | None
    is_correct: bool


class EvenIsCorrect:
    """A grader: the last boxed number is right if it is even; no boxed number is unparsable."""

    async def score(self, problem: Problem, completion: str, attempt: Attempt) -> Scored:
        answer = self.answer(completion)
        if answer is None:
            return Scored(status="unparsable", answer=None, is_correct=False)
        right = int(answer) % 2 == 0
        return Scored(status="correct" if right else "wrong", answer=answer, is_correct=right)

    def answer(self, completion: str) -> str | None:
        boxed = completion.rpartition("\\boxed{")[2].partition("}")[0]
        return boxed if "\\boxed{" in completion and boxed.isdigit() else None

    async def same(self, first: str, second: str) -> bool:
        return int(first) == int(second)


def roll(
    sampler: Sampler, operator: Operator, *, seed: int = 0, name: str = "p", num_answers: int = 1
) -> Rollout:
    """One scored rollout of ``operator`` on ``problem(name)``."""
    work = run_operator(problem(name), operator, settings(sampler), EvenIsCorrect(), seed, num_answers)
    return asyncio.run(work)


def plain_policy(policy: Sampler | None = None) -> Policy:
    """The policy on ``problem()``, without an operator around it."""
    return Policy(problem(), settings(policy or ScriptedPolicy()), EvenIsCorrect(), 0)
