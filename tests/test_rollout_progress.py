"""An evaluation tells of its tokens before its first rollout ends."""

import asyncio
import io
import re
import sys

import pytest
from fakes import SamplerOf, prompt_of, settings

import configs.progress
from rollout.evaluation.evaluate import InMemory
from rollout.evaluation.outcomes import Failure
from rollout.evaluation.progress import Progress
from rollout.records import Completion, Prompt, Sampling, Usage


async def _thousand(prompt: Prompt, sampling: Sampling, n: int) -> list[Completion]:
    usage = Usage(prompt_tokens=2, completion_tokens=1000)
    return [Completion(token_ids=(), logprobs=(), finish="stop", versions=(), usage=usage)] * n


def test_tokens_of_calls_and_failures_are_shown_while_no_rollout_has_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    monkeypatch.setattr(configs.progress, "SECONDS_BETWEEN_LINES", 0.0)
    record = InMemory()
    with Progress(record, title="evaluate", total=24, done=0) as progress:
        counted = progress.counting(settings(SamplerOf(_thousand)))
        asyncio.run(counted.sampler.generate(prompt_of(1, 2), counted.sampling, n=2))
        last = shown.getvalue().splitlines()[-1]
        assert last.startswith("evaluate: 0/24 ")
        assert re.search(r"tokens=2,000, tok/s=[\d.e+]+", last)
        progress.add_failure(Failure(problem_id="p", operator="pdr", sample=0, reason="no worker"))
    assert "failed=1" in shown.getvalue().splitlines()[-1]
    assert list(record.failures) == [("p", "pdr", 0)]
