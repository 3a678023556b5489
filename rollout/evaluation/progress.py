"""Shows the progress of an evaluation: rollouts that ended, and the tokens of all calls so far."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from configs.progress import progress_bar
from rollout.evaluation.outcomes import Failure, Outcome
from rollout.policy_settings import PolicySettings
from rollout.records import Completion, Prompt, Rollout, Sampling
from rollout.sampler import Sampler

LEAST_SECONDS = 0.1
"""Time below which a rate of tokens means nothing."""


class Sink(Protocol):
    """Receives rollouts as they end."""

    def add(self, outcome: Outcome, rollout: Rollout) -> None: ...
    def add_failure(self, failure: Failure) -> None: ...


class Progress:
    """Forwards rollouts to another sink and shows a progress bar. Use as a context manager."""

    def __init__(self, sink: Sink, *, title: str, total: int, done: int) -> None:
        self._sink = sink
        self._bar = progress_bar(title=title, total=total, done=done, unit="rollout")
        self._failed = self._tokens = 0
        self._began = self._drawn = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, outcome: Outcome, rollout: Rollout) -> None:
        self._sink.add(outcome, rollout)
        self._bar.update()

    def add_failure(self, failure: Failure) -> None:
        self._sink.add_failure(failure)
        self._failed += 1
        self._show()
        self._bar.update()

    def counting(self, settings: PolicySettings) -> PolicySettings:
        """Returns ``settings`` with samplers whose tokens are counted here."""
        drafts = {
            name: replace(each, sampler=CountingSampler(each.sampler, self)) if each.sampler else each
            for name, each in settings.drafts.items()
        }
        return replace(settings, sampler=CountingSampler(settings.sampler, self), drafts=drafts)

    def add_tokens(self, number: int) -> None:
        """Counts the tokens of a call, which may end minutes before the first rollout does."""
        self._tokens += number
        self._show()
        # tqdm itself draws only when a rollout ends.
        if time.monotonic() - self._drawn >= self._bar.mininterval:
            self._drawn = time.monotonic()
            self._bar.refresh()

    def _show(self) -> None:
        seconds = max(time.monotonic() - self._began, LEAST_SECONDS)
        shown = {"tokens": f"{self._tokens:,}", "tok/s": f"{self._tokens / seconds:.3g}"}
        if self._failed:
            shown["failed"] = str(self._failed)
        self._bar.set_postfix(shown, refresh=False)


class CountingSampler:
    """A sampler whose completions are counted as they come."""

    def __init__(self, sampler: Sampler, progress: Progress) -> None:
        self._sampler = sampler
        self._progress = progress

    @property
    def continues(self) -> bool:
        return self._sampler.continues

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        completions = await self._sampler.generate(prompt, sampling, n, request_id)
        self._progress.add_tokens(sum(each.usage.completion_tokens for each in completions))
        return completions

    async def abort(self, request_ids: Collection[str]) -> None:
        await self._sampler.abort(request_ids)
