"""The policy on one problem, as the operators see it: solve, distil, verify. Every call is recorded."""

import asyncio
import hashlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollout.prompts import Codec, PromptTexts
from rollout.records import ATTEMPTS, DISTIL, VERIFY, Call, Completion, Problem, Prompt, Sampling
from rollout.sampler import Sampler
from rollout.thinking import OK, Split, ThinkingMarks, split


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.blake2s(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The post-thinking part of a call, with the label of what it is."""

    call: int
    label: str
    text: str

    @property
    def is_usable(self) -> bool:
        """May enter a workspace."""
        return self.label == OK


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """What all problems of a run share."""

    sampler: Sampler
    codec: Codec
    prompts: PromptTexts
    marks: ThinkingMarks
    sampling: Sampling


class Policy:
    """One problem's view of the policy; it records every call."""

    def __init__(self, problem: Problem, settings: PolicySettings, seed: int) -> None:
        self.problem = problem
        self.codec = settings.codec
        self.prompts = settings.prompts
        self.counts: Counter[str] = Counter()
        self._slots: list[Call | None] = []
        self._settings = settings
        self._seed = seed
        self._round = 0

    @property
    def calls(self) -> list[Call]:
        """The graph of the rollout so far."""
        return [call for call in self._slots if call is not None]

    async def solve(
        self,
        *,
        role: str,
        round: int,
        workspace: str = "",
        parents: Sequence[int] = (),
        num: int = 1,
    ) -> list[int]:
        """``num`` attempts in one context: the plain problem, or problem and workspace."""
        self._round = round
        question = self.problem.question
        text = (
            self.prompts.refine_text(question, workspace) if workspace else self.prompts.solve_text(question)
        )
        return await self._call(text, role=role, parents=parents, num=num)

    async def distil(self, drafts: Sequence[Solution], *, kappa: int) -> int:
        """One call that writes a summary of the drafts."""
        text = self.prompts.distil_text(self.problem.question, [d.text for d in drafts], kappa)
        parents = tuple(draft.call for draft in drafts)
        return (await self._call(text, role=DISTIL, parents=parents, num=1))[0]

    async def verify(self, drafts: Sequence[Solution]) -> list[int]:
        """One call for each draft, that says whether it is correct."""
        question = self.problem.question
        calls = await asyncio.gather(
            *(
                self._call(
                    self.prompts.verify_text(question, draft.text),
                    role=VERIFY,
                    parents=(draft.call,),
                    num=1,
                )
                for draft in drafts
            )
        )
        return [call[0] for call in calls]

    def solution(self, call: int) -> Solution:
        """The post-thinking part of a call."""
        recorded = self._slots[call]
        assert recorded is not None, "a call is read after it returned"
        parts = self._split(recorded.role, recorded.text, recorded.finish)
        return Solution(call=call, label=parts.label, text=parts.solution)

    def verification(self, call: int) -> int:
        """1 if the verify call ends in a boxed yes, -1 for a boxed no, 0 for anything else."""
        solution = self.solution(call).text
        boxed = re.findall(r"\\boxed\s*\{\s*(?:\\text\{)?\s*(yes|no)\b", solution, re.I)
        return 0 if not boxed else 1 if boxed[-1].lower() == "yes" else -1

    async def _call(self, text: str, *, role: str, parents: Sequence[int], num: int) -> list[int]:
        prompt = self.codec.prompt(text)
        # Places are taken before the request leaves, so that order and seeds do not depend on timing.
        first = len(self._slots)
        self._slots.extend([None] * num)
        round = self._round
        seed = derive_seed(self._seed, self.problem.id, role, round, first)
        sampling = replace(self._settings.sampling, seed=seed)
        started = time.monotonic()
        completions = await self._settings.sampler.generate(prompt, sampling, num)
        seconds = time.monotonic() - started
        for place, completion in enumerate(completions, start=first):
            self._slots[place] = self._recorded(completion, prompt, role, round, parents, seconds)
        return list(range(first, first + num))

    def _recorded(
        self,
        completion: Completion,
        prompt: Prompt,
        role: str,
        round: int,
        parents: Sequence[int],
        seconds: float,
    ) -> Call:
        text = self.codec.decode(completion.token_ids) if completion.text is None else completion.text
        return Call(
            role=role,
            round=round,
            parents=tuple(parents),
            prompt_ids=prompt.ids,
            completion_ids=completion.token_ids,
            sampler_logprobs=completion.logprobs,
            train_mask=(True,) * len(completion.token_ids),
            versions=completion.versions,
            finish=completion.finish,
            text=text,
            label=self._split(role, text, completion.finish).label,
            usage=completion.usage,
            seconds=seconds,
        )

    def _split(self, role: str, text: str, finish: str) -> Split:
        return split(text, finish=finish, marks=self._settings.marks, needs_answer=role in ATTEMPTS)
