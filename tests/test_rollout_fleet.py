"""Several local workers: what each gets, and that all end when one does not start."""

import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.schema import RolloutConfig
from rollout.workers.fleet import Fleet, check_length, emulates, places, share_cores, warn_if_emulated
from rollout.workers.loopback import free_port

SERVER = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
FAILS = "raise SystemExit('no luck today')"
NEVER = "import time; time.sleep(600)"


class ScriptFleet(Fleet):
    """A fleet whose servers are a few lines of Python each; all else is the real thing."""

    def __init__(self, config: RolloutConfig, log_dir: Path, *scripts: str) -> None:
        super().__init__(config, "model", log_dir)
        for worker, script in zip(self.workers, scripts, strict=True):
            worker._command = lambda w=worker, s=script: [sys.executable, "-c", s, str(w._port)]


def _config(num_workers: int, **options: Any) -> RolloutConfig:
    return RolloutConfig(num_workers=num_workers, kv_cache_gib=1, **options)  # type: ignore[arg-type]


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [(8, 1, 0, 7), (8, 2, 0, 3), (2, 1, 0, 1), (2, 3, 0, 1), (8, 2, 5, 5), (1, 1, 0, 1)],
)
def test_cores_are_shared_out(cores: int, workers: int, threads: int, expected: int):
    assert share_cores(cores, workers, threads) == expected


def test_each_worker_has_a_log_and_a_number_of_its_own(tmp_path: Path):
    where = places(_config(3), tmp_path)
    assert [place.log_path.name for place in where] == ["worker_0.log", "worker_1.log", "worker_2.log"]
    assert [place.number for place in where] == [0, 1, 2]


def test_each_worker_gets_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def devices(number: int, each: int) -> list[str]:
        return [place.devices for place in places(_config(number, tensor_parallel_size=each), tmp_path)]

    assert devices(2, 2) == ["0,1", "2,3"]
    assert devices(1, 4) == ["0,1,2,3"]
    assert devices(1, 1) == [""]
    with pytest.raises(ValueError, match=r"num_workers is 3 of .*size = 2 GPUs each, but only 5 GPUs"):
        devices(3, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,5")
    assert devices(3, 1) == ["7", "3", "5"]


def test_a_cpu_worker_is_not_split(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 2, but no GPU is visible"):
        places(_config(1, tensor_parallel_size=2), tmp_path)


def test_no_worker_starts_with_an_option_that_vllm_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(args: dict[str, str]) -> None:
        raise ValueError(f"vLLM refuses {args}")

    monkeypatch.setattr("rollout.workers.fleet.check_with_vllm", refuse)
    fleet = ScriptFleet(_config(2, vllm_args={"a": "b"}), tmp_path, SERVER, SERVER)
    with pytest.raises(ValueError, match=r"vLLM refuses \{'a': 'b'\}"):
        fleet.start()
    assert list(tmp_path.iterdir()) == []


def test_all_start_on_ports_of_their_own_and_all_end(tmp_path: Path):
    before = _children()
    fleet = ScriptFleet(_config(2), tmp_path, SERVER, SERVER)
    fleet.start()
    assert len({worker.url for worker in fleet.workers}) == 2
    assert all(worker.is_alive for worker in fleet.workers)
    fleet.close()
    assert _children() == before


def test_a_fixed_port_is_the_first_of_as_many_as_there_are_workers(tmp_path: Path):
    port = free_port()
    fleet = ScriptFleet(_config(2, port=port), tmp_path, SERVER, SERVER)
    fleet.start()
    assert [worker.url for worker in fleet.workers] == [
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{port + 1}",
    ]
    fleet.close()


def test_a_taken_port_of_any_worker_is_refused_before_anything_starts(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"rollout\.port {port - 1} \+ 1 is in use"):
            ScriptFleet(_config(2, port=port - 1), tmp_path, SERVER, SERVER).start()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_checked_for_the_sum_of_the_caches_before_anything_starts(tmp_path: Path):
    each = int(psutil.virtual_memory().available / 2**30 / 2) + 1
    config = RolloutConfig(num_workers=2, kv_cache_gib=each)
    with pytest.raises(ValueError, match=rf"kv_cache_gib is {each} for each of 2 workers, but only .* GiB"):
        Fleet(config, "model", tmp_path).start()
    with pytest.raises(
        ValueError, match=r"kv_cache_gib is 1000000, but only .* Lower rollout\.kv_cache_gib\."
    ):
        Fleet(RolloutConfig(kv_cache_gib=10**6), "model", tmp_path).start()
    assert list(tmp_path.iterdir()) == []


def test_workers_always_have_a_key_which_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = []
    for value in (None, "", "mine"):
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("VLLM_API_KEY", value)
        fleet = Fleet(_config(2), "model", tmp_path)
        assert {worker._key for worker in fleet.workers} == {fleet.key}
        keys.append(fleet.key)
    assert keys[2] == "mine" and len({*keys}) == 3 and min(map(len, keys[:2])) == 64


@pytest.mark.component
def test_one_that_dies_at_start_ends_the_others_without_waiting_for_them(tmp_path: Path):
    before = _children()
    fleet = ScriptFleet(_config(2), tmp_path, NEVER, FAILS)
    with pytest.raises(RuntimeError, match=r"ended at start with status 1.*worker_1\.log") as error:
        fleet.start()
    assert "no luck today" in str(error.value)
    assert _children() == before


@pytest.mark.component
def test_what_was_begun_and_is_not_waited_for_is_ended(tmp_path: Path):
    before = _children()
    fleet = ScriptFleet(_config(2), tmp_path, NEVER, NEVER)
    fleet.begin()
    fleet.close()
    assert _children() == before


def test_a_server_is_told_its_threads(tmp_path: Path):
    script = "import os; raise SystemExit('THREADS ' + os.environ['OMP_NUM_THREADS'])"
    fleet = ScriptFleet(_config(1, num_threads=3), tmp_path, script)
    with pytest.raises(RuntimeError):
        fleet.start()
    assert "THREADS 3" in (tmp_path / "worker_0.log").read_text()


@pytest.mark.parametrize(
    ("dtype", "of_model", "capability", "slow"),
    [
        ("auto", "bfloat16", "AVX2", True),
        ("auto", "bfloat16", "AVX512", False),
        ("auto", "float32", "AVX2", False),
        ("float32", "bfloat16", "AVX2", False),
        ("bfloat16", "float32", "DEFAULT", True),
    ],
)
def test_bfloat16_without_the_instructions_for_it_is_noticed(
    dtype: str, of_model: str, capability: str, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config.json").write_text(f'{{"dtype": "{of_model}"}}')
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert emulates(dtype, tmp_path) == slow
    assert not emulates("auto", tmp_path / "owner" / "name")


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ('{"max_position_embeddings": 1024}', 1024),
        ('{"max_position_embeddings": 1024, "rope_scaling": {"factor": 4.0}}', None),
        ('{"max_position_embeddings": 1024, "rope_parameters": {"rope_theta": 1e4}}', 1024),
        ("{}", None),
    ],
)
def test_a_model_that_is_too_short_is_refused_before_anything_starts(
    config: str, most: int | None, tmp_path: Path
):
    (tmp_path / "config.json").write_text(config)
    check_length(1024, tmp_path)
    check_length(9999, tmp_path / "owner" / "name")
    if most is None:
        check_length(1025, tmp_path)
        return
    with pytest.raises(ValueError, match=r"rollout\.max_model_len is 1025, but .* takes 1024 tokens at most"):
        check_length(1025, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "capability", "warns"),
    [("bfloat16", "AVX2", True), ("bfloat16", "AVX512", False), ("float32", "AVX2", False)],
)
def test_bfloat16_on_a_cpu_without_it_is_warned_of(
    dtype: str,
    capability: str,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    warn_if_emulated("model.dtype", dtype, Path("owner/name"), "an update may take 40 times as long")
    assert ("Set model.dtype=float32" in caplog.text) == warns
