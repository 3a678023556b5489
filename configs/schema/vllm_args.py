"""``rollout.vllm_args``: options of vLLM's own command line, and those that the project sets itself."""

import json
from collections.abc import Mapping
from typing import Any

SET_BY = {
    "model": "model.path",
    "dtype": "rollout.dtype",
    "host": "rollout.host",
    "port": "rollout.port",
    "api_key": "the environment variable VLLM_API_KEY",
    "max_model_len": "rollout.max_model_len",
    "max_num_seqs": "rollout.max_num_seqs",
    "gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "enforce_eager": "rollout.enforce_eager",
    "enable_sleep_mode": "rollout.enable_sleep_mode",
    "tensor_parallel_size": "rollout.tensor_parallel_size",
    "pipeline_parallel_size": "rollout.tensor_parallel_size",
    "data_parallel_size": "rollout.num_workers",
    "generation_config": "rollout.temperature and rollout.top_p",
    "override_generation_config": "rollout.temperature and rollout.top_p",
    "enable_lora": "rollout.max_lora_rank",
    "max_lora_rank": "rollout.max_lora_rank",
    "max_loras": "rollout.max_lora_rank",
    "weight_transfer_config": "rollout.weight_transfer",
    "hf_overrides": "model.path (its config.json) and model.cast_lm_head_to_fp32",
}
"""Options of vLLM that the project sets -> what sets them."""
FIXED = (
    "config",
    "served_model_name",
    "uds",
    "uvicorn_log_level",
    "enable_scale_out",
    "enable_prompt_tokens_details",
    "disable_log_stats",
    "logprobs_mode",
    "middleware",
    "worker_extension_cls",
    "distributed_executor_backend",
    "device_memory_utilization",
    "device_ids",
    "nnodes",
)
"""Options of vLLM whose value the project relies on."""


def plain_name(name: str) -> str:
    """Returns the name of an option of vLLM as ``rollout.vllm_args`` writes it: ``kv_cache_dtype``."""
    return name.lstrip("-").replace("-", "_")


def check_vllm_args(args: Mapping[str, Any]) -> None:
    """Refuses options that the project sets itself. Whether vLLM knows the others is checked with vLLM.

    Raises:
        ValueError: If one is set by the project. The message names what to set instead.
    """
    for name in args:
        plain = plain_name(str(name)).removeprefix("no_")
        if plain in SET_BY:
            raise ValueError(f"rollout.vllm_args holds {name}, which {SET_BY[plain]} sets. Set that instead.")
        if plain in FIXED:
            raise ValueError(f"rollout.vllm_args holds {name}, which this project sets itself. Leave it out.")


def vllm_arguments(args: Mapping[str, Any]) -> list[str]:
    """Returns the words of vLLM's command line for options: ``{"kv_cache_dtype": "fp8"}`` ->
    ``["--kv-cache-dtype", "fp8"]``.

    True is a flag, False its ``--no-`` form; a list is several words; a mapping is JSON.
    """
    words: list[str] = []
    for name, value in args.items():
        flag = plain_name(name).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words
