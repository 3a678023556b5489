"""Starts, watches and stops one local vLLM server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import psutil
import torch

from configs.schema import RolloutConfig
from rollout.guard import end_tree

LOG_LINES = 30
GIB = 2**30


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LocalWorker:
    """A vLLM server as a child process, reached over loopback; its tree ends when this process does."""

    def __init__(self, config: RolloutConfig, model_path: str, log_path: Path) -> None:
        self._config = config
        self._model_path = model_path
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises:
            ValueError: If the port is taken or memory for the KV cache is not free.
            RuntimeError: If the server ends, or does not answer within ``start_timeout_seconds``.
        """
        self._check_memory()
        self._port = self._pick_port()
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rollout.guard", *self._command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server's process tree."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()  # the guard ends the tree
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            end_tree(self._process.pid)
        self._process = None

    def last_log_lines(self) -> str:
        """The end of the server's log, for error messages."""
        lines = self._log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(lines)

    def _command(self) -> list[str]:
        config = self._config
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self._model_path, "--served-model-name", "policy"),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--dtype", config.dtype),
            *("--max-model-len", str(config.max_model_len)),
            *("--max-num-seqs", str(config.max_num_seqs)),
            *("--uvicorn-log-level", "warning"),
            "--enable-scale-out",  # /inference/v1/generate: token ids in, token ids out
            "--enable-prompt-tokens-details",
            *("--logprobs-mode", "processed_logprobs"),  # after the temperature, as the trainer's are
            *("--worker-extension-cls", "rollout.vllm_extension.PublishExtension"),
        ]
        if config.enforce_eager:
            command.append("--enforce-eager")
        if not torch.cuda.is_available():
            # Chunked prefill of a seeded request kills a CPU engine ("CPU Generator does not use offset").
            command += ["--no-enable-chunked-prefill"]
            command += ["--max-num-batched-tokens", str(max(8192, config.max_model_len))]
        return command

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        # The trainer's own rendezvous and thread limits are not the server's.
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
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # /pause, /resume, /collective_rpc
        environment["VLLM_CPU_KVCACHE_SPACE"] = f"{self._config.kv_cache_gib}"
        environment["VLLM_NO_USAGE_STATS"] = "1"
        if self._config.num_threads:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{self._config.num_threads - 1}"
        return environment

    def _pick_port(self) -> int:
        if self._config.port == 0:
            return free_port()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._config.port))
            except OSError as error:
                raise ValueError(
                    f"rollout.port {self._config.port} is in use ({error.strerror}). "
                    "Choose another, or 0 for any free port."
                ) from error
        return self._config.port

    def _check_memory(self) -> None:
        if torch.cuda.is_available():
            return
        available = psutil.virtual_memory().available / GIB
        if self._config.kv_cache_gib > available:
            raise ValueError(
                f"rollout.kv_cache_gib is {self._config.kv_cache_gib}, but only {available:.1f} GiB of "
                "memory are free. Lower rollout.kv_cache_gib."
            )

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._config.start_timeout_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"The vLLM worker ended at start with status {self._process.returncode}. "
                    f"The end of {self._log_path}:\n{self.last_log_lines()}"
                )
            with suppress(URLError, OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2):
                return
            time.sleep(0.25)
        raise RuntimeError(
            f"The vLLM worker at {self.url} did not answer within rollout.start_timeout_seconds = "
            f"{self._config.start_timeout_seconds:g}. The end of {self._log_path}:\n{self.last_log_lines()}"
        )
