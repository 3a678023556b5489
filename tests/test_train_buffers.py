"""Under bf16 ZeRO-3 every buffer that no checkpoint holds is that of a plainly loaded model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.component

LIMIT_SECONDS = 120
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SHARDED = """
import json, sys
from train.deepspeed_zero import prepare_for_deepspeed
prepare_for_deepspeed(on_gpu=False)  # else DeepSpeed compiles an op for half a minute
import deepspeed
from transformers.integrations import HfDeepSpeedConfig
from configs.schema import ModelConfig
from train.model.policy import load_model

def found(path):
    model = load_model(ModelConfig(path=path, dtype="bfloat16"))
    assert not sharded or all(hasattr(parameter, "ds_id") for parameter in model.parameters())
    return {name: [str(buffer.dtype), buffer.tolist()] for name, buffer in model.named_buffers()}

sharded = False
plain = found(sys.argv[1])
deepspeed.init_distributed("gloo")
options = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1}
keep = HfDeepSpeedConfig(options)
sharded = True
print(json.dumps([plain, found(sys.argv[1])]))
"""


@pytest.mark.parametrize("rope", sorted(ROPES))
def test_buffers_under_zero_3_in_bfloat16_are_those_of_a_plain_load(rope: str, tmp_path: Path):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        rope_parameters=ROPES[rope],
        max_position_embeddings=131_072,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    alone |= {"MASTER_PORT": "0", "ACCELERATE_USE_DEEPSPEED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **alone, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain, sharded = json.loads(done.stdout.splitlines()[-1])
    assert sharded == plain
    assert plain["model.rotary_emb.inv_freq"][0] == "torch.float32"
