"""Sends new weights to the workers through a directory of safetensors; works on any device.

Requests in flight are frozen, not lost: they go on with the new weights, and their tokens carry both
versions. By option they are waited for instead.
"""

import asyncio
from pathlib import Path

from rollout.pool import WorkerPool
from rollout.routing import Endpoint


class DirectoryPublisher:
    """Publishes weights that lie in a directory which every worker can read."""

    def __init__(self, pool: WorkerPool, timeout_seconds: float, pause_mode: str = "keep") -> None:
        """``pause_mode`` is vLLM's: ``keep`` freezes requests in flight, ``wait`` lets them end first."""
        self._pool = pool
        self._pause_mode = pause_mode
        self._timeout = timeout_seconds
        self._current: tuple[Path, int] | None = None
        pool.reviver.after_restart = self._bring_up_to_date

    async def publish(self, directory: Path, version: int) -> None:
        """Loads the weights in ``directory`` into every worker and checks that it serves ``version``.

        Raises:
            RuntimeError: If a worker fails, takes too long, or serves another version afterwards. The
                message names the worker.
        """
        self._current = (directory, version)
        workers = self._pool.endpoints
        await asyncio.gather(*(self._publish_or_replace(worker, directory, version) for worker in workers))

    async def _publish_or_replace(self, endpoint: Endpoint, directory: Path, version: int) -> None:
        """A local worker that broke is restarted, which loads the current weights, too."""
        reviver = self._pool.reviver
        await reviver.settled(endpoint)
        try:
            await self._publish_to(endpoint, directory, version)
        except RuntimeError:
            reviver.begin(endpoint)
            await reviver.settled(endpoint)
            if await self._pool.served_version(endpoint) != version:
                raise

    async def _bring_up_to_date(self, endpoint: Endpoint) -> None:
        if self._current is not None:
            await self._publish_to(endpoint, *self._current)

    async def _publish_to(self, endpoint: Endpoint, directory: Path, version: int) -> None:
        post = self._pool.post
        await post(endpoint, f"/pause?mode={self._pause_mode}", timeout=self._timeout)
        try:
            load = {"method": "load_published", "kwargs": {"weights_path": str(directory)}}
            await post(endpoint, "/collective_rpc", load, timeout=self._timeout)
            await post(endpoint, "/reset_prefix_cache", timeout=self._timeout)
            await post(endpoint, "/update_weight_version", {"new_version": str(version)})
        finally:
            await post(endpoint, "/resume")
        served = await self._pool.served_version(endpoint)
        if served != version:
            raise RuntimeError(
                f"Rollout worker {endpoint.url} serves policy version {served} after version {version} was "
                "published to it; see its log."
            )
