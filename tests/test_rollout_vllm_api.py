"""What is said to vLLM: paths, bodies, limits; and what its answers mean."""

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import prompt_of

from rollout.endpoints.served_model import ServedModel
from rollout.endpoints.vllm_api import VllmApi
from rollout.records import Sampling

URL = "http://worker"
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=8, seed=5, stop_token_ids=(3,))


@dataclass(slots=True)
class Recorded:
    """In place of the HTTP client: keeps what is sent; answers with ``answer``, or raises it."""

    answer: Any = None
    sent: list[tuple[str, str, Any, float]] = field(default_factory=list)

    async def control(self, method: str, url: str, body: Any, timeout_seconds: float) -> Any:
        self.sent.append((method, url.removeprefix(URL), body, timeout_seconds))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def status(self, url: str, timeout_seconds: float) -> int:
        return await self.control("GET", url, None, timeout_seconds)


def _asked(order: Callable[[VllmApi], Coroutine[Any, Any, Any]], answer: Any = None) -> tuple[Any, Recorded]:
    client = Recorded(answer)
    return asyncio.run(order(VllmApi(client))), client  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "path", "body"),
    [
        (
            lambda api: api.pause(URL, "keep", 9.0, clear_cache=True),
            "/pause?mode=keep&clear_cache=true",
            None,
        ),
        (
            lambda api: api.pause(URL, "wait", 9.0, clear_cache=False),
            "/pause?mode=wait&clear_cache=false",
            None,
        ),
        (lambda api: api.resume(URL, 9.0), "/resume", None),
        (lambda api: api.sleep(URL, 9.0), "/sleep?level=2&mode=wait", None),
        (lambda api: api.wake_weights(URL, 9.0), "/wake_up?tags=weights", None),
        (lambda api: api.wake_cache(URL, 9.0), "/wake_up?tags=kv_cache", None),
        (lambda api: api.set_version(URL, 3, 9.0), "/update_weight_version", {"new_version": "3"}),
        (
            lambda api: api.load(URL, Path("/weights/3"), 9.0),
            "/collective_rpc",
            {"method": "load_published", "kwargs": {"weights_path": "/weights/3"}},
        ),
        (
            lambda api: api.receive(URL, {"port": 1}, [{"name": "w"}], 9.0),
            "/collective_rpc",
            {"method": "receive_published", "kwargs": {"meeting": {"port": 1}, "entries": [{"name": "w"}]}},
        ),
        (
            lambda api: api.abort(URL, ["a", "b"], 9.0),
            "/inference/v1/abort_requests",
            {"request_ids": ["generate-tokens-a", "generate-tokens-b"]},
        ),
    ],
)
def test_an_order_is_one_post_within_its_limit(order: Any, path: str, body: Any):
    answer, client = _asked(order)
    assert answer is None
    assert client.sent == [("POST", path, body, 9.0)]


def test_dropping_caches_includes_those_of_requests_in_flight():
    _, client = _asked(lambda api: api.reset_prefix_cache(URL, 9.0), {"success": True})
    path = "/reset_prefix_cache?reset_running_requests=true"
    assert client.sent == [("POST", path, None, 9.0)]


@pytest.mark.parametrize("answer", [None, {}, {"success": False}, {"success": "yes"}, []])
def test_a_worker_that_does_not_confirm_that_its_caches_are_gone_is_refused(answer: Any):
    """As an older vLLM, which ignores the parameter and answers 200 while blocks are in use."""
    with pytest.raises(
        RuntimeError, match=rf"http://worker/reset_prefix_cache answered {re.escape(repr(answer))}"
    ):
        _asked(lambda api: api.reset_prefix_cache(URL, 9.0), answer)


def test_vllm_takes_what_is_sent_to_it():
    """By its source, since the CPU build does not free memory when it sleeps."""
    from vllm.entrypoints.rl.online.api_router import pause_generation
    from vllm.entrypoints.serve.dev.cache.api_router import reset_prefix_cache
    from vllm.v1.executor.abstract import SLEEP_TAGS
    from vllm.v1.worker.gpu_worker import Worker

    assert {"mode", "clear_cache"} <= inspect.signature(pause_generation).parameters.keys()
    assert "reset_running_requests" in inspect.signature(reset_prefix_cache).parameters
    assert {"weights", "kv_cache"} == SLEEP_TAGS
    # Level 2 loses what is neither parameter nor buffer: buffers are kept in host memory.
    assert "buffer.cpu().clone() for name, buffer in model.named_buffers()" in inspect.getsource(Worker.sleep)
    assert "buffer.data.copy_(self._sleep_saved_buffers[name].data)" in inspect.getsource(Worker.wake_up)


def test_a_request_holds_ids_and_how_to_sample_and_its_name_only_if_it_has_one():
    api = VllmApi(Recorded())  # type: ignore[arg-type]
    body = json.loads(api.request_body(prompt_of(1, 2), SAMPLING, 4, "mine"))
    assert body == {
        "token_ids": [1, 2],
        "request_id": "mine",
        "sampling_params": {
            "n": 4,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 0,
            "max_tokens": 8,
            "seed": 5,
            "stop_token_ids": [3],
            "logprobs": 0,
            "detokenize": False,
        },
    }
    assert "request_id" not in json.loads(api.request_body(prompt_of(1, 2), SAMPLING, 4, None))


def test_a_key_is_checked_where_every_server_with_a_key_asks_for_it():
    _, client = _asked(lambda api: api.check_key(URL, 9.0), {"data": []})
    assert client.sent == [("GET", "/v1/models", None, 9.0)]
    with pytest.raises(RuntimeError, match="401"):
        _asked(lambda api: api.check_key(URL, 9.0), RuntimeError("answered 401"))


def test_the_served_model_is_that_of_the_card_without_a_parent():
    adapter = {"id": "lora", "root": "/adapters/x", "parent": "policy", "max_model_len": None}
    base = {"id": "policy", "root": "/models/x", "parent": None, "max_model_len": 4096}
    served, client = _asked(lambda api: api.served_model(URL, 9.0), {"data": [adapter, base]})
    assert served == ServedModel(path="/models/x", max_model_len=4096)
    assert client.sent == [("GET", "/v1/models", None, 9.0)]


@pytest.mark.parametrize(
    "answer", [None, {}, {"data": []}, {"data": [{"id": "policy"}]}, {"data": ["x"]}, []]
)
def test_an_answer_without_a_model_is_an_error_that_shows_it(answer: Any):
    with pytest.raises(RuntimeError, match=rf"/v1/models answered {re.escape(repr(answer))}, which names no"):
        _asked(lambda api: api.served_model(URL, 9.0), answer)


def test_a_worker_is_healthy_if_it_answers_and_never_an_error():
    healthy, client = _asked(lambda api: api.is_healthy(URL, 9.0), 200)
    assert healthy is True
    assert client.sent == [("GET", "/health", None, 9.0)]
    for answer in (503, RuntimeError("failed")):
        assert _asked(lambda api: api.is_healthy(URL, 9.0), answer)[0] is False


@pytest.mark.parametrize(("label", "version"), [("default", 0), ("41", 41)])
def test_the_version_of_a_worker_is_its_label(label: str, version: int):
    said, client = _asked(lambda api: api.weight_version(URL, 9.0), {"weight_version": label})
    assert said == version
    assert client.sent == [("GET", "/weight_info", None, 9.0)]


@pytest.mark.parametrize(
    "answer", [{"weight_version": "main"}, {"weight_version": 3e999}, {"version": "3"}, None, [], "3", 3]
)
def test_an_answer_without_a_version_of_ours_names_the_worker(answer: Any):
    with pytest.raises(RuntimeError, match=r"http://worker/weight_info answered .* holds no version"):
        _asked(lambda api: api.weight_version(URL, 9.0), answer)
