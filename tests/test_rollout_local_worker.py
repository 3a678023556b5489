"""How a local worker starts, and how it says why it did not."""

import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedConfig

from configs.schema import RolloutConfig
from rollout.workers.local_worker import LocalWorker, WorkerPlace
from rollout.workers.loopback import free_port

SERVER = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


KEY = "a-secret-nobody-may-see"


class ScriptWorker(LocalWorker):
    """A worker whose server is a few lines of Python; all else is the real thing."""

    script = ""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", self.script, str(self._port)]


def _worker(script: str, log: Path, **options: float) -> ScriptWorker:
    config = RolloutConfig(kv_cache_gib=1, **options)  # type: ignore[arg-type]
    worker = ScriptWorker(config, "model", WorkerPlace(log_path=log), KEY)
    worker.script = script
    return worker


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_port_in_use_is_refused_by_the_name_of_its_option(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"rollout\.port {port} is in use.*0 for any free port"):
            _worker(SERVER, tmp_path / "log", port=port).start()
    assert not (tmp_path / "log").exists()


@pytest.mark.component
def test_temporary_files_that_the_server_leaves_go_with_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    leaves = "import tempfile, pathlib\n(pathlib.Path(tempfile.gettempdir()) / 'left').touch()\n"
    worker = _worker(leaves + SERVER, tmp_path / "log")
    worker.start()
    assert list(tmp_path.glob("vllm_*/left"))
    worker.stop()
    assert not list(tmp_path.glob("vllm_*"))


@pytest.mark.component
def test_a_started_worker_answers_on_the_port_asked_for_and_stops(tmp_path: Path):
    before, port = _children(), free_port()
    worker = _worker(SERVER, tmp_path / "logs" / "log", port=port)
    worker.start()
    assert worker.url == f"http://127.0.0.1:{port}"
    assert worker.is_alive
    worker.stop()
    assert not worker.is_alive
    assert _children() == before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    worker.stop()  # a second time is nothing


def test_a_closed_worker_is_never_started_again(tmp_path: Path):
    before = _children()
    worker = _worker(SERVER, tmp_path / "log")
    worker.start()
    worker.close()
    with pytest.raises(RuntimeError, match="was closed"):
        worker.restart()
    assert _children() == before


@pytest.mark.component
def test_a_worker_that_is_closed_while_it_starts_ends_at_once(tmp_path: Path):
    before = _children()
    worker = _worker("import time; time.sleep(600)", tmp_path / "log")
    with ThreadPoolExecutor() as threads:
        start = threads.submit(worker.start)
        while not worker.is_alive:
            time.sleep(0.01)
        worker.close()
        with pytest.raises(RuntimeError, match="ended at start"):
            start.result(timeout=30)
    assert _children() == before


@pytest.mark.component
def test_a_stopped_worker_can_be_started_again(tmp_path: Path):
    worker = _worker(SERVER, tmp_path / "log")
    for _ in range(2):
        worker.start()
        assert worker.is_alive
        worker.stop()


@pytest.mark.component
def test_a_server_that_dies_at_start_shows_its_status_and_last_log_lines(tmp_path: Path):
    before = _children()
    script = "print(*(f'line {i}.' for i in range(100)), sep='\\n'); raise SystemExit(3)"
    worker = _worker(script, tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"ended at start with status 3 after \d+ s\.") as error:
        worker.start()
    text = str(error.value)
    assert str(tmp_path / "log") in text
    assert "line 99." in text and "line 70." in text and "line 69." not in text
    assert not worker.is_alive
    assert _children() == before


@pytest.mark.component
def test_a_server_that_dies_at_start_shows_its_first_error_and_not_that_of_an_earlier_start(tmp_path: Path):
    (tmp_path / "log").write_text("ValueError: of an earlier start\n")
    script = (
        "import sys\n"
        "try: raise MemoryError('no room for the KV cache')\n"
        "except MemoryError:\n"
        "    import traceback; traceback.print_exc(); sys.stderr.flush()\n"
        "print(*(f'line {i}.' for i in range(100)), sep='\\n')\n"
        "raise SystemExit('Engine core initialization failed. See root cause above.')"
    )
    with pytest.raises(RuntimeError) as error:
        _worker(script, tmp_path / "log").start()
    said = str(error.value)
    assert said.index("MemoryError: no room for the KV cache") < said.index("line 99.")
    assert said.endswith("See root cause above.")
    assert "an earlier start" not in said


@pytest.mark.component
def test_a_server_that_never_answers_is_ended_at_its_limit(tmp_path: Path):
    before = _children()
    script = "import time; print('loading', flush=True); time.sleep(600)"
    worker = _worker(script, tmp_path / "log", start_timeout_seconds=2.0)
    with pytest.raises(RuntimeError, match=r"did not answer within rollout\.start_timeout_seconds = 2"):
        worker.start()
    assert _children() == before


def test_a_server_is_not_given_the_trainers_ranks_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "MASTER_ADDR", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    script = (
        "import os; print('SEEN', sorted(os.environ), os.environ['OMP_NUM_THREADS']); raise SystemExit(1)"
    )
    worker = _worker(script, tmp_path / "log")
    with pytest.raises(RuntimeError):
        worker.start()
    seen = (tmp_path / "log").read_text()
    assert "'VLLM_SERVER_DEV_MODE'" in seen and "'VLLM_CPU_KVCACHE_SPACE'" in seen
    assert "] 1\n" in seen
    for name in ("RANK", "MASTER_ADDR", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        assert f"'{name}'" not in seen


def test_a_server_has_its_key_in_its_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_API_KEY", "another")
    script = (
        f"import os; print(os.environ['VLLM_API_KEY'] == {KEY[::-1]!r}[::-1], os.getppid(), flush=True)\n"
        "import psutil\n"
        "print(*[a for p in psutil.Process().parents()[:2] for a in p.cmdline()]); raise SystemExit(1)"
    )
    worker = _worker(script, tmp_path / "log")
    with pytest.raises(RuntimeError):
        worker.start()
    log = (tmp_path / "log").read_text()
    assert log.startswith("True ") and KEY not in log
    command = LocalWorker._command(worker)
    assert "rollout.endpoints.access.RequireKey" in command and KEY not in command


@pytest.mark.parametrize(
    ("enforce_eager", "has_gpu", "is_eager"),
    [("auto", True, False), ("auto", False, True), ("true", True, True), ("false", False, False)],
)
def test_graphs_are_used_on_a_gpu_unless_set_otherwise(
    enforce_eager: str, has_gpu: bool, is_eager: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    config = RolloutConfig(enforce_eager=enforce_eager, tensor_parallel_size=2)
    command = LocalWorker(config, "model", WorkerPlace(log_path=tmp_path / "log"), KEY)._command()
    assert ("--enforce-eager" in command) == is_eager
    if has_gpu:
        assert command[command.index("--tensor-parallel-size") + 1] == "2"


def test_options_of_vllm_come_last_and_the_models_own_sampling_does_not_count(tmp_path: Path):
    config = RolloutConfig(vllm_args={"max_num_batched_tokens": 4096, "enable_prefix_caching": False})
    command = LocalWorker(config, "model", WorkerPlace(log_path=tmp_path / "log"), KEY)._command()
    assert command[-3:] == ["--max-num-batched-tokens", "4096", "--no-enable-prefix-caching"]
    assert command[command.index("--generation-config") + 1] == "vllm"


@pytest.mark.integration
def test_a_model_that_does_not_exist_ends_vllm_with_its_own_words_and_no_process(tmp_path: Path):
    before = _children()
    config = RolloutConfig(kv_cache_gib=1, max_model_len=256, max_completion_length=16)
    worker = LocalWorker(config, str(tmp_path / "no-such-model"), WorkerPlace(log_path=tmp_path / "log"), KEY)
    with pytest.raises(RuntimeError, match=r"ended at start with status [^0]") as error:
        worker.start()
    assert "no-such-model" in str(error.value)
    assert _children() == before


@pytest.mark.parametrize("value", [None, ""])
def test_a_worker_that_others_may_reach_needs_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
):
    worker = _worker("", tmp_path / "log", host="0.0.0.0")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_API_KEY", value)
    with pytest.raises(ValueError, match=r"rollout\.host is 0\.0\.0\.0, .* VLLM_API_KEY is not set or empty"):
        worker.start()
    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    worker.check_address()


@pytest.mark.component
@pytest.mark.parametrize("in_fp32", [False, True])
def test_vllm_computes_logits_in_float32_if_the_trainer_does(tmp_path: Path, in_fp32: bool):
    """vLLM reads the option from the model's config, which the command line overrides."""
    worker = _worker("", tmp_path / "log", cast_lm_head_to_fp32=in_fp32)
    command = LocalWorker._command(worker)
    given = [json.loads(command[i + 1]) for i, part in enumerate(command) if part == "--hf-overrides"]
    assert given == [{"head_dtype": "float32"}] * in_fp32
    from vllm.config.model import _get_head_dtype

    dtype = _get_head_dtype(PreTrainedConfig(**(given[0] if given else {})), torch.bfloat16, "generate")
    assert dtype == (torch.float32 if in_fp32 else torch.bfloat16)
