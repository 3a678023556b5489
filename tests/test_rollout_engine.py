"""The engine over endpoints that somebody else started."""

import asyncio
import logging
import os
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from fakes import prompt_of
from stub_server import StubOptions, stub_process

from configs.schema import RolloutConfig
from rollout.endpoints.chat import ChatEndpoint
from rollout.engine import RolloutEngine
from rollout.records import Sampling
from rollout.workers.loopback import free_port

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=1)
KEY = "a-secret-nobody-may-see"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def _sampled(config: RolloutConfig, folder: Path) -> int:
    with RolloutEngine(config, "model", folder) as engine:
        jobs = [engine.sampler.generate(prompt_of(i), SAMPLING, 2) for i in range(4)]
        return sum(len(engine.run(job, 20, what="a call")) for job in jobs)


def test_any_number_of_remote_workers_serve_one_run(tmp_path: Path):
    with stub_process(StubOptions()) as first, stub_process(StubOptions()) as second:
        assert _sampled(RolloutConfig(urls=[first, second + "/"]), tmp_path) == 8
    assert list(tmp_path.iterdir()) == []


def test_work_has_a_limit_or_none(tmp_path: Path):
    with (
        stub_process(StubOptions()) as url,
        RolloutEngine(RolloutConfig(urls=[url]), "m", tmp_path) as engine,
    ):
        assert engine.run(asyncio.sleep(0.2, "done"), None, what="a moment") == "done"
        with pytest.raises(RuntimeError, match=r"did not finish an hour within 0\.1 s\."):
            engine.run(asyncio.sleep(3600), 0.1, what="an hour")


def test_a_remote_worker_that_is_not_there_is_named_at_once(tmp_path: Path):
    gone = f"http://127.0.0.1:{free_port()}"
    with (
        stub_process(StubOptions()) as here,
        pytest.raises(RuntimeError, match=rf"The rollout worker {gone} does not answer.*enable-scale-out"),
    ):
        _sampled(RolloutConfig(urls=[here, gone]), tmp_path)


def _entered(options: StubOptions, model: str, folder: Path, **changes: int) -> None:
    with stub_process(options) as url, RolloutEngine(RolloutConfig(urls=[url], **changes), model, folder):
        pass


def test_a_worker_that_serves_another_model_is_refused_by_both_names(tmp_path: Path):
    folders = [tmp_path / "one" / "policy", tmp_path / "two" / "policy"]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = map(str, folders)
    named = rf"model\.path is {second}, but the rollout worker http://\S+ serves {first}"
    with pytest.raises(ValueError, match=named):
        _entered(StubOptions(model=first), second, tmp_path)
    with pytest.raises(ValueError, match=r"model\.path is Qwen/Qwen3-4B, but .* serves Qwen/Qwen3-1\.7B"):
        _entered(StubOptions(model="Qwen/Qwen3-1.7B"), "Qwen/Qwen3-4B", tmp_path)


def test_the_same_model_under_another_path_is_accepted(tmp_path: Path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "link").symlink_to("policy")
    _entered(StubOptions(model=str(tmp_path / "link")), str(tmp_path / "policy"), tmp_path)
    _entered(StubOptions(model="/scratch/of/another/machine/policy"), str(tmp_path / "policy"), tmp_path)


def test_a_worker_that_takes_fewer_tokens_than_the_run_counts_on_is_refused(tmp_path: Path):
    named = r"rollout\.max_model_len is 4096, but .* takes only 2048 tokens.*rollout\.max_model_len=2048"
    with pytest.raises(ValueError, match=named):
        _entered(StubOptions(max_model_len=2048), "m", tmp_path)
    for longer in (4096, 8192):
        _entered(StubOptions(max_model_len=longer), "m", tmp_path)


def test_a_worker_with_a_key_is_reached_with_it_and_refused_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with stub_process(StubOptions(key=KEY)) as url:
        config = RolloutConfig(urls=[url])
        with pytest.raises(RuntimeError, match=r"401.*Set VLLM_API_KEY"):
            _sampled(config, tmp_path)
        monkeypatch.setenv("VLLM_API_KEY", "wrong-" + KEY)
        with pytest.raises(RuntimeError, match=r"401.*Set VLLM_API_KEY") as error:
            _sampled(config, tmp_path)
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        assert _sampled(config, tmp_path) == 8
    for shown in (str(error.value), caplog.text, yaml.safe_dump(asdict(config))):
        assert KEY not in shown


def test_work_that_does_not_end_in_time_is_named_and_cancelled(tmp_path: Path):
    cancelled: list[bool] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with (
        stub_process(StubOptions()) as url,
        RolloutEngine(RolloutConfig(urls=[url]), "model", tmp_path) as engine,
    ):
        text = r"did not finish the batch of step 7 within 0\.1 s\.$"
        with pytest.raises(RuntimeError, match=text) as error:
            engine.run(forever(), 0.1, what="the batch of step 7")
        assert engine.run(asyncio.sleep(0, "alive"), 5, what="a moment") == "alive"
        assert cancelled == [True]
    assert "coroutine" not in str(error.value)


def test_leaving_the_engine_cancels_what_is_under_way(tmp_path: Path):
    with stub_process(StubOptions(seconds_per_token=10.0)) as stuck:
        with RolloutEngine(RolloutConfig(urls=[stuck]), "model", tmp_path) as engine:
            ended: list[str] = []

            async def ask() -> None:
                try:
                    await engine.sampler.generate(prompt_of(1), SAMPLING)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.5)  # its end takes more than one turn of the loop
                    ended.append("in order")
                    raise

            waiting = engine.submit(ask())
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        with pytest.raises(CancelledError):
            waiting.result(timeout=10)
    assert ended == ["in order"]


def test_an_open_worker_elsewhere_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = RolloutConfig(urls=["http://192.0.2.1:8000"])  # an address for documentation: nobody is there
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        _sampled(config, tmp_path)
    assert "VLLM_API_KEY is not set" in caplog.text


def test_an_empty_key_for_a_worker_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_API_KEY", "")
    with pytest.raises(ValueError, match=r"192\.0\.2\.1:8000 is not .* VLLM_API_KEY is empty"):
        _sampled(RolloutConfig(urls=["http://192.0.2.1:8000"]), tmp_path)


def test_local_workers_are_asked_with_the_key_that_was_made_for_them(tmp_path: Path):
    engine = RolloutEngine(RolloutConfig(kv_cache_gib=1), "model", tmp_path)
    assert engine._fleet is not None
    assert engine.pool._client._key == engine._fleet.key
    assert "VLLM_API_KEY" not in os.environ


def test_an_endpoint_that_chats_needs_no_worker_and_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with stub_process(StubOptions(key=KEY)) as url:
        config = RolloutConfig(chat_url=f"{url}/v1", chat_model="gpt")
        with RolloutEngine(config, "model", tmp_path) as engine:
            assert isinstance(engine.sampler, ChatEndpoint)
            with pytest.raises(RuntimeError, match="evaluated, not trained"):
                _ = engine.pool
        assert KEY not in yaml.safe_dump(asdict(config)) + repr(config)
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_that_chats_and_is_not_there_is_named_by_its_option(tmp_path: Path):
    config = RolloutConfig(chat_url=f"http://127.0.0.1:{free_port()}/v1", chat_model="gpt")
    with pytest.raises(RuntimeError, match=r"rollout\.chat_url does not answer: http://127"):
        _sampled(config, tmp_path)


def test_remote_workers_that_may_round_logits_otherwise_than_the_trainer_are_warned_of(tmp_path, caplog):
    for in_fp32 in (False, True):
        config = RolloutConfig(urls=["http://127.0.0.1:9"], cast_lm_head_to_fp32=in_fp32)
        RolloutEngine(config, "m", tmp_path)
        assert ("head_dtype" in caplog.text) == in_fp32
