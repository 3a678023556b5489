"""Weights by CUDA IPC: order and bodies of the calls, and that vLLM's own code reads what they hold.

No CUDA here: the handle of a bucket is a number under which this process keeps the bucket.
"""

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web
from stub_server import StubOptions, StubServer
from torch import Tensor

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.weights.buckets import buckets, by_dtype, entry_of
from rollout.weights.ipc import IpcPublisher
from rollout.workers.local_worker import LocalWorker, WorkerPlace

CPU = torch.device("cpu")
BUCKET_BYTES = 96


class Gpu:
    """Memory that two processes see; stands in for CUDA's exports."""

    uuid = "GPU-1"

    def __init__(self) -> None:
        self.exports: dict[int, Tensor] = {}
        self._numbers = count()

    def export(self, packed: Tensor) -> dict[str, tuple[Any, ...]]:
        number = next(self._numbers)
        self.exports[number] = packed
        # As ``reduce_tensor`` does: the device's index is the seventh argument.
        return {self.uuid: (number, None, None, None, None, None, 0)}

    def rebuild(self, number: int, *_: Any) -> Tensor:
        return self.exports[number]


class Worker(StubServer):
    """A worker whose weight updates go through vLLM's own consumer."""

    def __init__(self) -> None:
        super().__init__(StubOptions(median_tokens=5))
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.refuses = False

    def add_routes(self, app: web.Application) -> None:
        paths = ("wake_up", "pause", "init_weight_transfer_engine", "start_weight_update", "update_weights")
        paths += ("finish_weight_update", "reset_prefix_cache", "update_weight_version", "resume")
        for path in paths:
            app.router.add_post(f"/{path}", self._called)
        super().add_routes(app)  # last: of two handlers for one path the first is called

    async def _called(self, request: web.Request) -> web.Response:
        name = request.path.strip("/")
        self.calls.append(name)
        if request.can_read_body:
            self.bodies.append(await request.json())
        if name == "update_weight_version":
            self.version = self.bodies[-1]["new_version"]
        if name == "update_weights" and self.refuses:
            return web.Response(status=500, text="IPC handle not found for GPU UUID GPU-2")
        return web.json_response({"success": True})


def _weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = {f"w{i}": torch.randn(i + 1, 3).to((torch.bfloat16, torch.float32)[i % 2]) for i in range(9)}
    entries = by_dtype(entry_of(name, value.dtype, value.shape) for name, value in weights.items())
    return {entry.name: weights[entry.name] for entry in entries}


def _published(worker: Worker, gpu: Gpu, weights: dict[str, Tensor]) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(worker)
            pool = await stack.enter_async_context(WorkerPool([Endpoint(url=worker.url)], RolloutConfig()))
            publisher = IpcPublisher(pool, 5.0, sleeps=True, device=CPU, export=gpu.export)
            entries = [entry_of(name, value.dtype, value.shape) for name, value in weights.items()]
            parts = [[weights[entry.name] for entry in bucket] for bucket in buckets(entries, BUCKET_BYTES)]
            source = SimpleNamespace(entries=entries, bucket_bytes=BUCKET_BYTES, again=parts.__getitem__)
            feed = await publisher.open(source, 4)  # type: ignore[arg-type]

            def gather() -> None:
                for part in parts:
                    feed.put(part)

            await asyncio.gather(asyncio.to_thread(gather), publisher.publish(feed, 4))

    asyncio.run(run())


def test_a_sleeping_worker_is_woken_paused_updated_labelled_and_resumed_in_this_order():
    worker = Worker()
    _published(worker, Gpu(), _weights())
    updates = worker.calls.count("update_weights")
    assert updates > 3
    assert worker.calls == [
        *("wake_up", "pause", "init_weight_transfer_engine", "start_weight_update"),
        *["update_weights"] * updates,
        *("finish_weight_update", "reset_prefix_cache", "update_weight_version", "wake_up", "resume"),
    ]
    assert worker.bodies[0] == {"init_info": {"packed": True}}


def test_vllm_reads_from_the_updates_the_weights_that_were_published(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    packed_tensor = pytest.importorskip("vllm.distributed.weight_transfer.packed_tensor")
    from torch.multiprocessing import reductions
    from vllm.distributed.weight_transfer import ipc_engine

    worker, gpu, weights, loaded = Worker(), Gpu(), _weights(), {}
    _published(worker, gpu, weights)
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", gpu.rebuild)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=gpu.uuid))
    engine = object.__new__(ipc_engine.IPCWeightTransferEngine)
    engine.device = torch.device("cuda", 0)
    engine.model = SimpleNamespace(load_weights=loaded.update)  # type: ignore[assignment]
    engine._packed_importer = packed_tensor.PackedBufferImporter()
    engine.init_transfer_engine(engine.parse_init_info(worker.bodies[0]["init_info"]))
    for body in worker.bodies:
        if "update_info" in body:
            engine.receive_weights(engine.parse_update_info(body["update_info"]))
    assert list(loaded) == list(weights)
    for name, value in weights.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)


def test_a_worker_on_another_gpu_is_named_and_stays_paused():
    worker = Worker()
    worker.refuses = True
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:\d+ did not take its weights: .* GPU UUID GPU-2"):
        _published(worker, Gpu(), _weights())
    assert "resume" not in worker.calls and "finish_weight_update" not in worker.calls


def test_a_local_worker_is_started_with_the_ipc_engine_and_may_read_its_handles():
    config = RolloutConfig(weight_transfer="ipc", enable_sleep_mode=True)
    worker = LocalWorker(config, "model", WorkerPlace(number=0, log_path=None), "key")  # type: ignore[call-arg, arg-type]
    command = worker._command()
    assert command[command.index("--weight-transfer-config") + 1] == '{"backend": "ipc"}'
    assert worker._environment()["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    plain = LocalWorker(RolloutConfig(), "model", WorkerPlace(number=0, log_path=None), "key")  # type: ignore[call-arg, arg-type]
    assert "--weight-transfer-config" not in plain._command()
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in plain._environment()
