"""Under ZeRO-3 no rank holds a whole copy of the model while it loads; every weight is that of the files."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from tiny import tiny_model

pytestmark = pytest.mark.component

LIMIT_SECONDS = 300
RANKS = 2


def test_a_rank_grows_by_its_shard_and_little_more_while_it_loads_the_weights_of_the_files(tmp_path: Path):
    big = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    tiny_model(**big, **heads).save_pretrained(tmp_path / "big", max_shard_size="80MB")
    tiny_model().save_pretrained(tmp_path / "small")
    assert len(list((tmp_path / "big").glob("*.safetensors"))) > 2
    for found in _load(tmp_path / "big", tmp_path / "small"):
        assert found["differing"] == []
        # The shard is half of it, the largest weight 2%. A copy alone would be all of it.
        assert found["whole"] / RANKS < found["peak"] < 0.6 * found["whole"]


def _load(model: Path, small: Path) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed is given back, and not counted as held
        "ACCELERATE_USE_DEEPSPEED": "true",  # else DeepSpeed compiles an op, see deepspeed_zero.py
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, str(REPO / "tests" / "loading_rank.py"), str(model), str(small)]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        ended = [rank.communicate(timeout=LIMIT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, ended, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    return [json.loads(printed.splitlines()[-1]) for printed, _ in ended]
