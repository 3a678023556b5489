"""Publishes between two processes on one GPU: CUDA IPC through vLLM's own weight transfer engine.

The worker copies each bucket from the trainer's memory on the same device; nothing passes through the host's
memory or a disk on the way. Order and bodies of the calls follow ``vllm/distributed/weight_transfer`` of
vLLM 0.32 (``ipc_engine``, packed). Not run on a GPU.
"""

import asyncio
import base64
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.weights.broadcast import FeedPublisher, current_device
from rollout.weights.buckets import WeightEntry
from rollout.weights.feed import Feed

Export = Callable[[Tensor], dict[str, tuple[Any, ...]]]
"""Returns, by the UUID of the tensor's GPU, what another process rebuilds the tensor from."""


def export_handle(packed: Tensor) -> dict[str, tuple[Any, ...]]:
    """Exports a tensor on a GPU; it must live until the other process has let go of it."""
    uuid = str(torch.cuda.get_device_properties(packed.device).uuid)
    return {uuid: reduce_tensor(packed)[1]}


def update_body(bucket: Sequence[WeightEntry], handle: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Returns the update of one bucket, as vLLM's ``IPCWeightTransferUpdateInfo`` reads it over HTTP."""
    return {
        "names": [entry.name for entry in bucket],
        "dtype_names": [entry.dtype for entry in bucket],
        "shapes": [list(entry.shape) for entry in bucket],
        "tensor_sizes": [entry.num_bytes for entry in bucket],
        "ipc_handles_pickled": base64.b64encode(pickle.dumps(handle)).decode(),
    }


class IpcPublisher(FeedPublisher):
    """Hands each bucket of a feed to a worker on the same GPU."""

    def __init__(
        self,
        pool: WorkerPool,
        timeout_seconds: float,
        pause_mode: str = "keep",
        *,
        sleeps: bool = False,
        device: torch.device | None = None,
        export: Export = export_handle,
    ) -> None:
        """``device`` None: this process's GPU; the other arguments as for ``WeightPublisher``."""
        super().__init__(pool, timeout_seconds, pause_mode, sleeps=sleeps)
        self.device = device or current_device()
        self._export = export

    async def _load(
        self, endpoints: Sequence[Endpoint], weights: Feed, *, is_first: bool
    ) -> dict[Endpoint, Exception]:
        async def update(endpoint: Endpoint) -> None:
            await self._update(endpoint, weights)

        try:
            return await self._on_all(endpoints, update)
        finally:
            if is_first:
                weights.stop_reading()

    async def _update(self, endpoint: Endpoint, weights: Feed) -> None:
        api, url, given_up = self._pool.api, endpoint.url, threading.Event()
        try:
            await api.start_update(url, self._timeout)
            for index, bucket in enumerate(weights.buckets):
                packed = await asyncio.to_thread(weights.bucket, index, self._timeout, given_up)
                # Written by the trainer's stream, which has ended before the feed hands a bucket out.
                body = update_body(bucket, self._export(packed))
                await api.update(url, body, self._timeout)
                weights.sent(index)  # the worker has copied it
            await api.finish_update(url, self._timeout)
        except RuntimeError as error:
            raise RuntimeError(f"Rollout worker {url} did not take its weights: {error}") from error
        finally:
            given_up.set()
