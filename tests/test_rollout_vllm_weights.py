"""New weights on real vLLM workers: published, transferred, asleep, and after a worker was killed."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import torch
from evaluation_fakes import Kept
from fakes import EvenIsCorrect, prompt_of
from real_worker import GREEDY, PROMPT, SAMPLING, built_operator, expected_logprobs, sampling_settings
from tiny import tiny_model

from configs.schema import RolloutConfig
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import PlannedRollout, evaluate
from rollout.operators import Operator
from rollout.records import (
    Completion,
    Problem,
)
from rollout.weights import broadcast
from rollout.weights.broadcast import TransferPublisher
from rollout.weights.buckets import BUCKET_BYTES
from rollout.weights.feed import Feed
from rollout.weights.meeting import Meeting
from rollout.weights.publish import DirectoryPublisher
from train.model.weights import PolicyWeights
from train.sharding import Unsharded

pytestmark = pytest.mark.integration


def test_published_weights_are_served_and_every_token_knows_its_version(
    engine: RolloutEngine, tmp_path: Path
):
    tiny_model(seed=5).save_pretrained(tmp_path)
    engine.run(engine.publisher.publish(tmp_path, 41), 60, what="a publish")
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    assert [span.version for span in completion.versions] == [41]
    # Every weight counts, the tied head's too: log-probs are those of the published model.
    expected = expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pause_mode", ["keep", "keep_cache"])
def test_what_is_sampled_after_a_publish_reads_keys_and_values_of_the_new_weights_unless_they_are_kept(
    engine: RolloutEngine, tmp_path: Path, pause_mode: str
):
    """The prompt is in the cache, and a request is half done, when the weights change."""
    for seed in (8, 9):
        tiny_model(seed=seed).save_pretrained(tmp_path / str(seed))
    by_directory = engine.pool.restarter.after_restart
    publisher = DirectoryPublisher(engine.pool, 60, pause_mode)
    number = 60 if pause_mode == "keep" else 70
    prompt = prompt_of(*(40 + i % 31 for i in range(300)))  # two full blocks of the prefix cache

    async def publish_midway() -> tuple[Completion, Completion]:
        await publisher.publish(tmp_path / "8", number)
        for seed in range(100):  # until one does not end by itself
            running = replace(SAMPLING, max_tokens=400, seed=1000 + seed)
            (whole,) = await engine.pool.generate(prompt, running)
            if len(whole.token_ids) == running.max_tokens:
                break
        task = asyncio.create_task(engine.pool.generate(prompt, running))
        await asyncio.sleep(0.15)
        await publisher.publish(tmp_path / "9", number + 1)
        (after,) = await engine.pool.generate(prompt, GREEDY)
        return (await task)[0], after

    try:
        midway, after = engine.run(publish_midway(), 240, what="a publish")
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert [span.version for span in midway.versions] == [number, number + 1]
    new = tmp_path / "9"
    start = midway.versions[1].start
    assert 0 < start < len(midway.token_ids) - 8
    for completion, first in ((midway, start), (after, 0)):
        expected = expected_logprobs(new, completion, prompt)[first:]
        apart = (torch.tensor(completion.logprobs)[first:] - expected).abs().max()
        assert (apart < 1e-3) == (pause_mode == "keep")
    # Leaves no key of old weights behind.
    engine.run(engine.publisher.publish(new, number + 2), 60, what="a publish")


def test_weights_over_a_process_group_are_served_as_those_of_a_directory(
    engine: RolloutEngine, tmp_path: Path
):
    model = tiny_model(seed=6)
    model.save_pretrained(tmp_path)
    by_directory = engine.pool.restarter.after_restart
    try:
        publisher = TransferPublisher(engine.pool, 60, backend="gloo")
        _send(engine, publisher, PolicyWeights(model, Unsharded(), BUCKET_BYTES["gloo"]), 43)
    finally:
        engine.pool.restarter.after_restart = by_directory
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    assert [span.version for span in completion.versions] == [43]
    expected = expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_a_worker_whose_transfer_broke_in_the_middle_serves_the_next_one_whole(
    engine: RolloutEngine, tmp_path: Path
):
    """vLLM has taken a part of the weights when the transfer ends; the retry replaces all of them."""
    model = tiny_model(seed=8)
    model.save_pretrained(tmp_path)
    by_directory = engine.pool.restarter.after_restart
    restarts = engine.pool.restarter.restarts
    try:
        publisher = TransferPublisher(engine.pool, 60, backend="gloo")
        weights = PolicyWeights(model, Unsharded(), bucket_bytes=2**14)
        send, broken = broadcast.send, []

        def break_once(feed: Feed, *arguments: Any) -> None:
            if not broken:
                broken.append(len(feed.buckets))
                feed = _Breaking(feed)  # type: ignore[assignment]
            send(feed, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broadcast, "send", break_once)
            _send(engine, publisher, weights, 44)
        assert broken and broken[0] > 4
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert engine.pool.restarter.restarts == restarts
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    assert [span.version for span in completion.versions] == [44]
    expected = expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


class _Breaking:
    """A feed that fails at its fourth bucket."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def bucket(self, index: int, seconds: float, given_up: threading.Event) -> torch.Tensor:
        if index == 3:
            raise RuntimeError("out of memory")
        return self._feed.bucket(index, seconds, given_up)


def test_publishes_share_a_group_and_a_worker_that_was_killed_gets_the_next_one_in_another(
    engine: RolloutEngine, rollout_config: RolloutConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    formed: list[str] = []
    form = broadcast.form

    def count(server: Any, meeting: Meeting, *rest: Any) -> Any:
        formed.append(meeting.group)
        return form(server, meeting, *rest)

    monkeypatch.setattr(broadcast, "form", count)
    by_directory = engine.pool.restarter.after_restart
    restarts = engine.pool.restarter.restarts
    publisher = TransferPublisher(engine.pool, 60, backend="gloo")
    try:
        for version, groups in ((45, 1), (46, 1), (47, 2), (48, 3)):
            if version == 47:
                guard = engine._fleet.workers[0]._process.pid  # type: ignore[union-attr]
                for process in psutil.Process(guard).children(recursive=True):
                    process.kill()
            model = tiny_model(seed=version)
            model.save_pretrained(tmp_path / str(version))
            weights = PolicyWeights(model, Unsharded(), BUCKET_BYTES["gloo"])
            _send(engine, publisher, weights, version, 60 + rollout_config.start_timeout_seconds)
            assert len(formed) == len(set(formed)) == groups
            (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
            assert [span.version for span in completion.versions] == [version]
            expected = expected_logprobs(tmp_path / str(version), completion)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert engine.pool.restarter.restarts == restarts + 1


def _send(
    engine: RolloutEngine,
    publisher: TransferPublisher,
    weights: PolicyWeights,
    version: int,
    seconds: float = 120,
) -> None:
    """Publishes as ``EnginePublisher`` does."""
    feed = engine.run(publisher.open(weights, version), 60, what="a publish")
    sent = engine.submit(publisher.publish(feed, version))
    for part in weights.parts():
        feed.put(part)
    sent.result(timeout=seconds)


def test_workers_sleep_until_the_next_publish(engine: RolloutEngine, tmp_path: Path):
    """A CPU worker keeps its memory, but else does as one that gives it back."""
    tiny_model(seed=7).save_pretrained(tmp_path)
    by_directory = engine.pool.restarter.after_restart
    try:
        publisher = DirectoryPublisher(engine.pool, 60, sleeps=True)
        engine.run(publisher.sleep(), 60, what="putting the workers to sleep")
        waiting = engine.pool.generate(PROMPT, SAMPLING)
        answer = asyncio.run_coroutine_threadsafe(waiting, engine._loop)
        with pytest.raises(TimeoutError):
            answer.result(timeout=1)
        engine.run(publisher.publish(tmp_path, 47), 60, what="a publish")
        assert len(answer.result(timeout=60)) == 1
        (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert [span.version for span in completion.versions] == [47]
    expected = expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_a_killed_worker_is_restarted_with_the_current_weights_and_nothing_is_lost(
    engine: RolloutEngine, rollout_config: RolloutConfig, tmp_path: Path
):
    tiny_model(seed=6).save_pretrained(tmp_path)
    engine.run(engine.publisher.publish(tmp_path, 42), 60, what="a publish")
    operator = built_operator("operator.schedule=[4,2,1]")
    restarts = engine.pool.restarter.restarts
    _evaluate_and_kill(engine, rollout_config, operator)
    assert engine.pool.restarter.restarts == restarts + 1
    (completion,) = engine.run(engine.pool.generate(PROMPT, GREEDY), 60, what="a call")
    assert completion.versions[0].version == 42


def test_two_workers_share_a_run_and_when_one_is_killed_the_other_goes_on(
    tiny_policy: Path, rollout_config: RolloutConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)  # the workers require a key all the same
    config = replace(rollout_config, num_workers=2)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with RolloutEngine(config, str(tiny_policy), tmp_path / "logs") as engine:
        assert engine._fleet is not None
        key = engine._fleet.key
        shown = " ".join(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
        assert "RequireKey" in shown and key not in shown
        weights = tmp_path / "weights"
        tiny_model(seed=6).save_pretrained(weights)
        engine.run(engine.publisher.publish(weights, 3), 120, what="a publish")
        for path in ("/weight_info", "/v1/models", "/pause", "/collective_rpc"):
            with pytest.raises(HTTPError, match="401"):
                urlopen(Request(engine.pool.endpoints[0].url + path), timeout=10)
        requests = engine.pool.counts.requests
        needed = _evaluate_and_kill(engine, config, built_operator("operator.schedule=[4,2,1]"))
        pool = engine.pool
        # Only what the killed worker had not answered was sent again.
        assert pool.counts.requests - requests == needed + pool.counts.retries
        assert 0 < pool.counts.retries <= 40
        settled = (pool.restarter.settled(endpoint) for endpoint in pool.endpoints)
        for waiting in settled:
            engine.run(waiting, config.start_timeout_seconds, what="a restart")
        assert pool.restarter.restarts == 1
        asked = "asking for the version"
        assert [engine.run(pool.served_version(e), 30, what=asked) for e in pool.endpoints] == [3, 3]
    logs = [(tmp_path / "logs" / f"worker_{i}.log").read_text() for i in range(2)]
    assert all(log and key not in log for log in logs)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


def _evaluate_and_kill(engine: RolloutEngine, config: RolloutConfig, operator: Operator) -> int:
    """40 problems; the first worker is killed after the first rollout. Every problem has its one rollout.

    Returns:
        The number of requests that the rollouts are made of.
    """
    problems = [Problem(id=f"p{i}", question=f"{i} + 1 =", answer="0") for i in range(40)]
    guard = engine._fleet.workers[0]._process.pid  # type: ignore[union-attr]
    jobs = [PlannedRollout(problem=each, operator=operator, sample=0) for each in problems]
    sink = Kept()

    async def kill_midway() -> None:
        while not sink.rollouts:
            await asyncio.sleep(0.01)
        for process in psutil.Process(guard).children(recursive=True):
            process.kill()

    async def both() -> None:
        killer = asyncio.create_task(kill_midway())
        await evaluate(jobs, sampling_settings(engine, config), EvenIsCorrect(), sink, seed=0)
        await killer

    engine.run(both(), 300, what="both workers' answers")
    assert sorted(o.problem_id for o in sink.outcomes) == sorted(p.id for p in problems)
    assert sink.failures == []
    # Calls of one request share its prompt object.
    return sum(len({id(call.prompt_ids) for call in rollout.calls}) for rollout in sink.rollouts)
