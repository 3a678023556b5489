"""Local workers of a run, which share ports, memory and cores and start and end together."""

import json
import logging
import os
import sys
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil
import torch

from configs.schema import RolloutConfig
from rollout.endpoints.keys import KEY_VARIABLE, with_key
from rollout.workers.local_worker import LocalWorker, WorkerPlace
from rollout.workers.vllm_options import check_with_vllm

logger = logging.getLogger(__name__)

GIB = 2**30


def share_cores(cores: int, num_workers: int, num_threads: int) -> int:
    """Returns the threads of each CPU worker: ``num_threads`` if set, else its share of the cores minus one.

    At least one. The core left out is for the worker's HTTP server and for this process, its client.
    """
    return num_threads or max(1, cores // num_workers - 1)


def _cores() -> int:
    """Returns the physical cores that this process may use: hyperthreads do not speed up matrix products."""
    usable = len(os.sched_getaffinity(0))
    return min(usable, psutil.cpu_count(logical=False) or usable)


def places(config: RolloutConfig, log_dir: Path) -> list[WorkerPlace]:
    """Returns where each local worker runs.

    Raises:
        ValueError: If there are fewer GPUs than the workers need, or a worker of several GPUs and none.
    """
    count, each = config.num_workers, config.tensor_parallel_size
    devices: list[str] = [""] * count
    if torch.cuda.is_available() and count * each > 1:
        devices = _devices(count, each)
    elif each > 1 and not torch.cuda.is_available():
        raise ValueError(
            f"rollout.tensor_parallel_size is {each}, but no GPU is visible. Leave it at 1 on a CPU."
        )
    threads = share_cores(_cores(), count, config.num_threads)
    return [
        WorkerPlace(
            log_path=log_dir / f"worker_{i}.log",
            number=i,
            num_threads=threads,
            devices=devices[i],
        )
        for i in range(count)
    ]


def _devices(count: int, each: int) -> list[str]:
    """Returns the ``each`` GPUs of each worker, as ``CUDA_VISIBLE_DEVICES`` (not tested on a GPU)."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    if len(visible) < count * each:
        several = f" of rollout.tensor_parallel_size = {each} GPUs each" if each > 1 else ""
        raise ValueError(
            f"rollout.num_workers is {count}{several}, but only {len(visible)} GPUs are visible. Lower it."
        )
    return [",".join(visible[i * each : (i + 1) * each]) for i in range(count)]


def _model_config(model: Path) -> dict[str, Any]:
    """Returns the config of a local model; empty if ``model`` is not a folder, e.g. a name on the hub."""
    path = model / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def check_length(max_model_len: int, model: Path) -> None:
    """Checks ``rollout.max_model_len`` as vLLM would, before a worker is started.

    Raises:
        ValueError: If it exceeds the positions of the model.
    """
    config = _model_config(model)
    # A scaling factor extends the model beyond ``max_position_embeddings``.
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    longest = config.get("max_position_embeddings")
    if longest is not None and "factor" not in rope and max_model_len > longest:
        raise ValueError(
            f"rollout.max_model_len is {max_model_len}, but {model} takes {longest} tokens at most "
            "(max_position_embeddings). Lower it; prompt and completion must fit in it."
        )


def emulates(dtype: str, model: Path) -> bool:
    """Returns True if a CPU worker would compute in bfloat16 without instructions for it.

    Args:
        dtype: ``rollout.dtype``; ``auto`` is the dtype of the model.
        model: The model's folder; with ``auto``, a name on the hub counts as float32.
    """
    if dtype == "auto":
        config = _model_config(model)
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return dtype == "bfloat16" and torch.backends.cpu.get_cpu_capability() != "AVX512"


def warn_if_emulated(option: str, dtype: str, model: Path, consequence: str) -> None:
    """Warns if this machine has no GPU and its CPU would emulate ``dtype``.

    Args:
        option: The option that set ``dtype``.
        dtype: As for ``emulates``.
        model: As for ``emulates``.
        consequence: What is slow then; part of the message.
    """
    if not torch.cuda.is_available() and emulates(dtype, model):
        logger.warning(
            "This CPU (%s) has no bfloat16 arithmetic: with %s=%s, %s. Set %s=float32.",
            torch.backends.cpu.get_cpu_capability(),
            option,
            dtype,
            consequence,
            option,
        )


class Fleet:
    """Local workers, started in parallel. If one fails to start, all are ended."""

    def __init__(self, config: RolloutConfig, model_path: str, log_dir: Path, key: str | None = None) -> None:
        """``key`` None: that of the environment, or a new one that only this process knows (``self.key``)."""
        self.key = key or with_key(os.environ)[KEY_VARIABLE]
        self._config = config
        self._model_path = model_path
        self._log_dir = log_dir
        self.workers = [LocalWorker(config, model_path, place, self.key) for place in places(config, log_dir)]
        self._threads = ThreadPoolExecutor(max_workers=len(self.workers), thread_name_prefix="worker")
        self._starts: list[Future[None]] = []

    def begin(self) -> None:
        """Starts all workers without waiting for them.

        Raises:
            ValueError: If an address is invalid (``LocalWorker.check_address``), the memory for the KV caches
                is not free, or ``rollout.max_model_len`` exceeds what the model supports.
        """
        self._check_memory()
        check_length(self._config.max_model_len, Path(self._model_path))
        warn_if_emulated(
            "rollout.dtype",
            self._config.dtype,
            Path(self._model_path),
            "a worker may take minutes for its first token",
        )
        for worker in self.workers:
            worker.check_address()
        what = f"{len(self.workers)} worker{'s' * (len(self.workers) > 1)}"
        print(f"Starting {what}, logs in {self._log_dir}", file=sys.stderr, flush=True)
        args = self._config.vllm_args
        # First in the queue of the threads, so that no start waits for a check that has no thread.
        check = self._threads.submit(check_with_vllm, args) if args else None
        self._starts = [self._threads.submit(_start, worker, check) for worker in self.workers]

    def wait(self) -> None:
        """Waits until every worker that ``begin`` started answers; ends all of them on failure.

        Raises:
            ValueError: If a port is taken, or vLLM does not know an option of ``rollout.vllm_args``.
            RuntimeError: If a worker ends, or does not answer in time.
        """
        try:
            for start in wait(self._starts, return_when=FIRST_EXCEPTION).done:
                start.result()
        except BaseException:
            self.close()  # ends the workers that are still starting, too
            raise

    def start(self) -> None:
        """Calls ``begin``, then ``wait``."""
        self.begin()
        self.wait()

    def close(self) -> None:
        """Ends every worker; none can be started again."""
        with ThreadPoolExecutor(max_workers=len(self.workers)) as threads:
            list(threads.map(LocalWorker.close, self.workers))
        self._threads.shutdown()  # does not block: the starts in progress have failed by now

    def _check_memory(self) -> None:
        # With a GPU the KV cache is in its memory, which ``gpu_memory_utilization`` limits.
        if torch.cuda.is_available():
            return
        available = psutil.virtual_memory().available / GIB
        needed = self._config.kv_cache_gib * len(self.workers)
        if needed > available:
            each = f"rollout.kv_cache_gib is {self._config.kv_cache_gib}"
            many = f" for each of {len(self.workers)} workers" if len(self.workers) > 1 else ""
            raise ValueError(
                f"{each}{many}, but only {available:.1f} GiB of memory are free. Lower rollout.kv_cache_gib"
                f"{' or rollout.num_workers' if many else ''}."
            )


def _start(worker: LocalWorker, check: "Future[None] | None") -> None:
    if check is not None:
        check.result()
    worker.start()
