"""The policy on one problem, as operators use it: solve, distil, verify. Every call is recorded."""

import asyncio
import hashlib
import itertools
import math
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollout.forcing import Sampled, sample
from rollout.grading import Attempt, Grader, JudgedDraft
from rollout.policy_settings import PolicySettings
from rollout.records import (
    ANALYSE,
    ATTEMPTS,
    DISTIL,
    DRAFT,
    OWN,
    SELECT,
    VERIFY,
    Call,
    Problem,
    Prompt,
    Workspace,
    drafts_behind,
)
from rollout.records import EMPTY as NO_WORKSPACE
from rollout.thinking import OK, Split, split
from rollout.verdicts import Verdict


def derive_seed(*parts: object) -> int:
    """Returns a 31-bit seed that depends on every part and is the same on every machine."""
    digest = hashlib.blake2s(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The post-thinking part of a call, with its label (``thinking.LABELS``)."""

    call: int
    """Position of the call in the rollout."""
    label: str
    text: str

    @property
    def is_usable(self) -> bool:
        """True if it may enter a workspace."""
        return self.label == OK


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Position of a call in the graph of its rollout."""

    role: str
    round: int
    parents: tuple[int, ...]
    workspace: str = ""


class Policy:
    """The policy on one problem; records every call."""

    def __init__(
        self,
        problem: Problem,
        settings: PolicySettings,
        grader: Grader,
        seed: int,
        given_drafts: Sequence[Call] = (),
    ) -> None:
        """``given_drafts`` are used before any draft is sampled."""
        self.problem = problem
        self.codec = settings.codec
        self.prompts = settings.prompts
        self.same = grader.same
        self.counts: Counter[str] = Counter()
        self.workspaces: dict[int, str] = {}
        """Workspace text that an attempt read, by position; attempts without a workspace are absent."""
        self._grader = grader
        # One slot per call, in the order of the requests; None until the call returns.
        self._slots: list[Call | None] = []
        self._verdicts: dict[int, asyncio.Task[Verdict]] = {}
        self._settings = settings
        self._seed = seed
        self._aborted: set[str] = set()
        self._given = list(given_drafts)
        self._round = 0
        self.draft_policy = OWN
        """Policy that writes the drafts; see ``Call.policy``."""

    @property
    def calls(self) -> list[Call]:
        """The calls of the rollout so far."""
        return [call for call in self._slots if call is not None]

    async def solve(
        self, workspaces: Sequence[Workspace], *, role: str, round: int, quorum: float = 1.0
    ) -> tuple[int, ...]:
        """Makes one attempt per workspace and returns their positions; an empty workspace: the plain problem.

        Equal workspaces share one request, and so one prefix.

        Args:
            workspaces: Workspaces that the attempts read, one each.
            role: Role of the attempts.
            round: Round of the attempts.
            quorum: Once this share of the attempts has ended, the others are aborted: their tokens count,
                and they count as truncated.
        """
        self._round = round
        given = self._take_given(len(workspaces)) if role == DRAFT else ()
        # contexts: distinct workspace -> number of samples drawn from it.
        contexts = Counter(workspaces[len(given) :])
        # A fixed order: positions and seeds depend on the set of workspaces alone.
        ordered = sorted(contexts, key=lambda workspace: (workspace.text, workspace.parents))
        attempts = [
            (self._attempt(w), _Place(role=role, round=round, parents=w.parents, workspace=w.text))
            for w in ordered
        ]
        if quorum < 1:
            # One request per attempt: ``abort`` ends whole requests, not single samples.
            singles = [each for each, w in zip(attempts, ordered, strict=True) for _ in range(contexts[w])]
            return (*given, *await self._first(singles, enough=math.ceil(quorum * len(singles))))
        calls = await asyncio.gather(
            *(
                self._call(prompt, place, num=contexts[workspace])
                for (prompt, place), workspace in zip(attempts, ordered, strict=True)
            )
        )
        return (*given, *(call for some in calls for call in some))

    async def distil(
        self, drafts: Sequence[Solution], *, kappa: int, num: int = 1, previous: Workspace = NO_WORKSPACE
    ) -> list[int]:
        """Samples ``num`` summaries of the drafts; returns the positions of these calls.

        With ``previous`` that is not empty, they update this workspace.
        """
        text = self.prompts.distil_text(self.problem.question, [d.text for d in drafts], kappa, previous.text)
        parents = (*(draft.call for draft in drafts), *(() if previous.is_empty else previous.parents))
        place = _Place(role=DISTIL, round=self._round, parents=parents)
        return await self._call(self.codec.prompt(text), place, num=num)

    async def select(
        self, solutions: Sequence[Solution], *, votes: int, round: int, after: Sequence[int] = ()
    ) -> list[int]:
        """Makes ``votes`` calls that each name the best of the solutions; returns their positions.

        ``after`` are calls that the choice of these solutions waited for.
        """
        text = self.prompts.select_text(self.problem.question, [s.text for s in solutions])
        parents = (*(solution.call for solution in solutions), *after)
        place = _Place(role=SELECT, round=round, parents=parents)
        return await self._call(self.codec.prompt(text), place, num=votes)

    async def verify(self, drafts: Sequence[Solution]) -> list[int]:
        """Makes one call per draft that judges whether it is correct; returns their positions."""
        question = self.problem.question
        return await asyncio.gather(
            *(self._ask(self.prompts.verify_text(question, d.text), VERIFY, (d.call,)) for d in drafts)
        )

    async def analyse(self, draft: Solution) -> int:
        """Makes one call that lists the errors of a draft; returns its position."""
        return await self._ask(
            self.prompts.analyse_text(self.problem.question, draft.text), ANALYSE, (draft.call,)
        )

    def solution(self, call: int) -> Solution:
        """Returns the post-thinking part of a call."""
        recorded = self.recorded(call)
        parts = self._split(recorded.role, recorded.text, recorded.finish, recorded.completion_ids)
        return Solution(call=call, label=parts.label, text=parts.solution)

    def final_answer(self, call: int) -> str | None:
        """Returns the answer of a call as written, for votes; None if it has no answer."""
        return self._grader.answer(self.recorded(call).text)

    async def verdict(self, call: int) -> Verdict:
        """Returns the verifier's verdict on an attempt; each attempt is scored once."""
        # The task is stored before it ends, so concurrent callers share it.
        if call not in self._verdicts:
            self._verdicts[call] = asyncio.ensure_future(self._score(call))
        return await self._verdicts[call]

    async def _score(self, call: int) -> Verdict:
        recorded = self.recorded(call)
        behind = drafts_behind(self._slots, call)
        verdicts = await asyncio.gather(*(self.verdict(draft) for draft in behind))
        texts = [self.recorded(draft).text for draft in behind]
        attempt = Attempt(
            role=recorded.role,
            round=recorded.round,
            finish=recorded.finish,
            usage=recorded.usage,
            workspace=self.workspaces.get(call),
            drafts=tuple(map(JudgedDraft, texts, verdicts)),
        )
        return await self._grader.score(self.problem, recorded.text, attempt)

    def recorded(self, call: int) -> Call:
        """Returns a call that has ended."""
        recorded = self._slots[call]
        assert recorded is not None, "a call is read after it returned"
        return recorded

    def _take_given(self, most: int) -> tuple[int, ...]:
        """Records up to ``most`` of the given drafts and returns their positions."""
        first = len(self._slots)
        taken, self._given = self._given[:most], self._given[most:]
        self._slots += [replace(call, role=DRAFT, round=0, parents=(), is_given=True) for call in taken]
        return tuple(range(first, len(self._slots)))

    def _attempt(self, workspace: Workspace) -> Prompt:
        question = self.problem.question
        if workspace.is_empty:
            return self.codec.prompt(self.prompts.solve_text(question), self.prompts.shots)
        return self.codec.prompt(
            self.prompts.refine_text(question, workspace.text), self.prompts.refine_shots
        )

    async def _ask(self, text: str, role: str, parents: tuple[int, ...]) -> int:
        place = _Place(role=role, round=self._round, parents=parents)
        return (await self._call(self.codec.prompt(text), place))[0]

    async def _first(self, attempts: Sequence[tuple[Prompt, _Place]], *, enough: int) -> tuple[int, ...]:
        """Makes one call per attempt and aborts the rest once ``enough`` have ended."""
        names = [uuid.uuid4().hex for _ in attempts]
        tasks = [
            asyncio.ensure_future(self._call(prompt, place, request_id=name))
            for (prompt, place), name in zip(attempts, names, strict=True)
        ]
        try:
            for ended in itertools.islice(asyncio.as_completed(tasks), enough):
                await ended
            late = [name for task, name in zip(tasks, names, strict=True) if not task.done()]
            if late:
                # First the names, then the abort: a call between its two requests must not send the second.
                self._aborted.update(late)
                await self._settings.sampler.abort(late)
            calls = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        self.counts["draft/aborted"] += sum(self.recorded(call).finish == "abort" for (call,) in calls)
        return tuple(call for (call,) in calls)

    async def _call(
        self, prompt: Prompt, place: _Place, *, num: int = 1, request_id: str | None = None
    ) -> list[int]:
        # Slots are reserved before the request is sent, so that order and seeds do not depend on timing.
        first = len(self._slots)
        self._slots.extend([None] * num)
        if place.workspace:
            self.workspaces |= dict.fromkeys(range(first, first + num), place.workspace)
        seed = derive_seed(self._seed, self.problem.id, place.role, place.round, first)
        settings = self._settings.of(place.role, self.draft_policy)
        sampling = replace(settings.sampling, seed=seed)
        started = time.monotonic()
        sampler = settings.sampler or self._settings.sampler
        samples = await sample(sampler, prompt, sampling, num, settings.limit, request_id, self._aborted)
        seconds = time.monotonic() - started
        for slot, sampled in enumerate(samples, start=first):
            self._slots[slot] = self._record(sampled, prompt, place, seconds)
        return list(range(first, first + num))

    def _record(self, sampled: Sampled, prompt: Prompt, place: _Place, seconds: float) -> Call:
        completion = sampled.completion
        ids, finish = completion.token_ids, completion.finish
        text = self.codec.decode(ids, finish) if completion.text is None else self._shown(completion.text)
        return Call(
            role=place.role,
            round=place.round,
            parents=place.parents,
            prompt_ids=prompt.ids,
            completion_ids=ids,
            sampler_logprobs=completion.logprobs,
            train_mask=sampled.train_mask,
            versions=completion.versions,
            finish=finish,
            text=text,
            label=self._split(place.role, text, finish, ids).label,
            usage=completion.usage,
            seconds=seconds,
            policy=self.draft_policy if place.role == DRAFT else OWN,
        )

    def _shown(self, text: str) -> str:
        """Returns an endpoint's text as this policy would have written it.

        An endpoint hides its thinking; where this policy's template opens thinking, readers would take the
        whole text for an open one.
        """
        marks = self._settings.marks
        return f"{marks.close}\n\n{text}" if marks.opened_by_prompt and marks.close not in text else text

    def _split(self, role: str, text: str, finish: str, ids: Sequence[int]) -> Split:
        control = self.codec.control
        return split(
            text,
            finish=finish,
            marks=self._settings.marks,
            needs_answer=role in ATTEMPTS,
            control={control.spellings[i] for i in control.among(ids[:-1])},
        )
