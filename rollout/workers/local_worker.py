"""Starts, monitors and stops one local vLLM server."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.schema import RolloutConfig
from configs.schema.vllm_args import vllm_arguments
from rollout.endpoints.keys import KEY_VARIABLE, read_key
from rollout.endpoints.vllm_api import HEALTH
from rollout.workers.log_excerpt import log_excerpt
from rollout.workers.loopback import LOOPBACK, free_port, is_up
from rollout.workers.process_guard import end_guarded, start_guarded

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Executor that runs scheduler and model in one process. By default, vLLM on a CPU runs the model in a second
process, to bind its threads there; that process starts later and must be sent every token. ``_on_cpu`` limits
the threads instead."""
OPENMP = Path(sys.prefix) / "lib" / "libiomp5.so"
"""Intel's OpenMP, part of vLLM's CPU build; with ``KMP_BLOCKTIME`` its idle threads stop spinning soon."""
KEPT_MEMORY = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=17179869184"
"""Thresholds in bytes. By default glibc returns large blocks to the system at once, which zeroes them again
for the next step."""
NEEDED_ELSEWHERE = "VLLM_SERVER_DEV_MODE=1 and --enable-scale-out"
"""Settings that ``vllm_api`` requires of a worker that is not started here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """Resources of one local worker."""

    log_path: Path
    number: int = 0
    """Index from 0; the worker uses port ``rollout.port + number``."""
    num_threads: int = 1
    """Threads of the model; used without a GPU."""
    devices: str = ""
    """``CUDA_VISIBLE_DEVICES`` of the worker: ``tensor_parallel_size`` GPUs; empty keeps that of this
    process."""


def _on_cpu(num_threads: int) -> dict[str, str]:
    """Returns the environment of a worker whose model runs on a CPU with ``num_threads`` threads."""
    # Tunables and preloaded libraries that the user has set are kept.
    tunables = f"{KEPT_MEMORY}:{os.environ.get('GLIBC_TUNABLES', '')}".rstrip(":")
    environment = {"OMP_NUM_THREADS": str(num_threads), "GLIBC_TUNABLES": tunables}
    if num_threads > 1 and OPENMP.is_file():
        others = os.environ.get("LD_PRELOAD", "")
        environment |= {"LD_PRELOAD": f"{OPENMP}:{others}".rstrip(":"), "KMP_BLOCKTIME": "5"}
    return environment


class LocalWorker:
    """A vLLM server as a child process, reached over loopback; its process tree ends with this process.

    ``close`` may be called from another thread than the one that calls ``start`` or ``restart``.
    """

    def __init__(self, config: RolloutConfig, model_path: str, place: WorkerPlace, key: str) -> None:
        """``key`` is required of every request: without one, any user of this machine could load weights."""
        assert key, "a worker has a key"
        self._key = key
        self._config = config
        self._model_path = model_path
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary = ""
        """Folder for the server's temporary sockets and files, which it does not remove itself."""
        self._port = 0
        self._is_closed = False
        self._spawning = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises:
            ValueError: If the port is taken.
            RuntimeError: If the server ends, or does not answer within ``start_timeout_seconds``.
        """
        self.check_address()
        self._port = self._fixed_port or free_port()
        self._place.log_path.parent.mkdir(parents=True, exist_ok=True)
        # ``close`` either sees the new process here or makes the start fail: no process is left behind.
        with self._spawning, self._place.log_path.open("ab") as log:
            if self._is_closed:
                raise RuntimeError("The rollout worker was closed.")
            begin = log.tell()
            self._temporary = tempfile.mkdtemp(prefix="vllm_")
            process = self._process = start_guarded(self._command(), log, self._environment())
        try:
            self._wait_until_healthy(process, begin)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server's process tree; it may be started again."""
        process = self._process  # a local copy, since another thread may stop it at the same time
        if process is None:
            return
        end_guarded(process)
        self._process = None
        shutil.rmtree(self._temporary, ignore_errors=True)

    def restart(self) -> None:
        """Calls ``stop``, then ``start``; the server may have ended already."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends the server; a start in progress fails, and later starts raise ``RuntimeError``."""
        with self._spawning:
            self._is_closed = True
        self.stop()

    def check_address(self) -> None:
        """Checks the host and the fixed port, if one is set.

        Raises:
            ValueError: If other machines may reach the host and no key is set, or the port is taken.
        """
        if self._config.host not in LOOPBACK and not read_key(KEY_VARIABLE, os.environ):
            raise ValueError(
                f"rollout.host is {self._config.host}, which other machines may reach, and {KEY_VARIABLE} is "
                "not set or empty: they could use the worker and replace its weights. Set it here and for "
                "the trainer."
            )
        if not self._fixed_port:
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._fixed_port))
            except OSError as error:
                offset = f" + {self._place.number}" if self._place.number else ""
                raise ValueError(
                    f"rollout.port {self._config.port}{offset} is in use ({error.strerror}). "
                    "Choose another, or 0 for any free port."
                ) from error

    @property
    def _fixed_port(self) -> int:
        """Port of this worker; 0 if any free port may be used."""
        return self._config.port + self._place.number if self._config.port else 0

    def _command(self) -> list[str]:
        config = self._config
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self._model_path, "--served-model-name", "policy"),
            *("--host", config.host, "--port", str(self._port)),
            *("--dtype", config.dtype),
            *("--max-model-len", str(config.max_model_len)),
            *("--max-num-seqs", str(config.max_num_seqs)),
            *("--uvicorn-log-level", "warning"),
            "--enable-scale-out",  # adds /inference/v1/generate: token ids in, token ids out
            "--enable-prompt-tokens-details",
            "--disable-log-stats",
            *("--logprobs-mode", "processed_logprobs"),  # after the temperature, like the trainer's
            *("--generation-config", "vllm"),  # not the model's own sampling defaults, which are not trained
            *("--middleware", "rollout.endpoints.access.RequireKey"),
            *("--worker-extension-cls", "rollout.weights.vllm_extension.PublishExtension"),
        ]
        if config.cast_lm_head_to_fp32:
            command += ["--hf-overrides", '{"head_dtype": "float32"}']
        if config.max_lora_rank:
            command += ["--enable-lora", "--max-lora-rank", str(config.max_lora_rank), "--max-loras", "1"]
        if config.weight_transfer == "ipc":
            command += ["--weight-transfer-config", '{"backend": "ipc"}']
        is_on_gpu = torch.cuda.is_available()
        if config.enforce_eager == "true" or (config.enforce_eager == "auto" and not is_on_gpu):
            command.append("--enforce-eager")
        if is_on_gpu:
            command += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
            command += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
            if config.enable_sleep_mode:
                command.append("--enable-sleep-mode")
        else:
            command += ["--distributed-executor-backend", ONE_PROCESS]
            # Chunked prefill of a seeded request kills a CPU engine ("CPU Generator does not use offset").
            command += ["--no-enable-chunked-prefill"]
            command += ["--max-num-batched-tokens", str(max(8192, config.max_model_len))]
        # Last: of two values of an option vLLM takes the last.
        return [*command, *vllm_arguments(config.vllm_args)]

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        # The trainer's rendezvous and thread limits must not apply to the server.
        for name in (
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        ):
            environment.pop(name, None)
        for name in [n for n in environment if n.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
            environment.pop(name)
        environment.pop("OMP_NUM_THREADS", None)
        environment[KEY_VARIABLE] = self._key  # not an argument: those are in the list of processes
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # /pause, /resume, /collective_rpc
        if self._config.max_lora_rank:
            environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # /v1/load_lora_adapter, under the key
        if self._config.weight_transfer == "ipc":
            # CUDA's handles reach vLLM pickled. Only holders of the key can send any.
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        environment["VLLM_CPU_KVCACHE_SPACE"] = f"{self._config.kv_cache_gib}"
        environment["VLLM_NO_USAGE_STATS"] = "1"
        environment["TMPDIR"] = self._temporary
        if not torch.cuda.is_available():
            environment |= _on_cpu(self._place.num_threads)
        if self._place.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._place.devices
        return environment

    def _wait_until_healthy(self, process: subprocess.Popen[bytes], log_begin: int) -> None:
        started = time.monotonic()
        deadline = started + self._config.start_timeout_seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(
                    f"The vLLM worker ended at start with status {process.returncode} after "
                    f"{time.monotonic() - started:.0f} s. {log_excerpt(self._place.log_path, log_begin)}"
                )
            if is_up(self.url + HEALTH):
                return
            time.sleep(0.25)
        raise RuntimeError(
            f"The vLLM worker at {self.url} did not answer within rollout.start_timeout_seconds = "
            f"{self._config.start_timeout_seconds:g}. {log_excerpt(self._place.log_path, log_begin)}"
        )
