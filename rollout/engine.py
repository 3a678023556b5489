"""Workers, pool and publisher for synchronous callers: an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from configs.schema import RolloutConfig
from rollout.pool import Endpoint, WorkerPool
from rollout.publish import DirectoryPublisher
from rollout.worker import LocalWorker

T = TypeVar("T")


class RolloutEngine:
    """Owns the workers of a run. Use as a context manager: nothing is left behind.

    Raises (on entry):
        ValueError, RuntimeError: If a local worker cannot start, or a remote one does not answer.
    """

    def __init__(self, config: RolloutConfig, model_path: str, log_dir: Path) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="rollout")
        self._worker = None if config.urls else LocalWorker(config, model_path, log_dir / "worker_0.log")
        self.pool = WorkerPool(self._endpoints(), config)
        self.publisher = DirectoryPublisher(self.pool, config.publish_timeout_seconds)

    def __enter__(self) -> "RolloutEngine":
        self._thread.start()
        try:
            if self._worker is not None:
                self._worker.start()
                self.pool.endpoints[0].url = self._worker.url
            self.run(self.pool.__aenter__(), 10)
            for endpoint in self.pool.endpoints:
                self.run(self._reach(endpoint), 30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self.pool, "_http"):
            self.run(self.pool.__aexit__(), 10)
        if self._worker is not None:
            self._worker.stop()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
        """Runs ``work`` on the engine's loop and waits for it.

        Raises:
            RuntimeError: If it takes longer than ``timeout_seconds``.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout=timeout_seconds)
        except TimeoutError as error:
            future.cancel()
            raise RuntimeError(f"{work} did not end within {timeout_seconds:g} s.") from error
        except BaseException:
            future.cancel()
            raise

    def _endpoints(self) -> list[Endpoint]:
        if self._worker is None:
            return [Endpoint(url=url.rstrip("/")) for url in self._config.urls]
        return [Endpoint(url="", restart=self._restart)]

    async def _restart(self) -> str:
        worker = self._worker
        assert worker is not None
        await asyncio.to_thread(worker.stop)
        await asyncio.to_thread(worker.start)
        return worker.url

    async def _reach(self, endpoint: Endpoint) -> None:
        try:
            await self.pool.served_version(endpoint)
        except Exception as error:
            raise RuntimeError(
                f"The rollout worker {endpoint.url} does not answer ({error!r}). Start it with "
                "VLLM_SERVER_DEV_MODE=1 and --enable-scale-out, or leave rollout.urls empty."
            ) from error
