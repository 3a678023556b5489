"""A worker that sleeps while the trainer updates: its GPU memory before and after, and what it serves then.

    python tests/gpu/sleep.py [--device cuda|cpu] [--size full|tiny]

A worker samples, loses weights and KV cache in its sleep (vLLM's level 2), is woken by a publish of the same
weights, and must sample the same tokens with the same log-probs again; then other weights are published in
the same way and must change them. On a CPU vLLM keeps the memory, so only the second is shown.

Prints one JSON object per figure; fails if the tokens differ or, on a GPU, if the memory is not freed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_script import options_of, teller

from configs.schema import RolloutConfig
from rollout.engine import RolloutEngine
from rollout.records import Completion, Prompt, Sampling

tell = teller("sleep")
GIB = 2**30
FREED_ASLEEP = 0.75
"""Least share of a worker's memory that it frees while it sleeps; CUDA context and graphs stay."""
MODELS: dict[str, dict[str, int]] = {
    "tiny": {},
    "full": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    },
}
"""``full`` has the sizes of Qwen3-1.7B."""
PROMPT = Prompt(text="", ids=tuple(range(40, 104)), context="sleep")


def used_gib() -> float:
    """Returns the used memory of the GPU, by all processes; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def tell_memory(name: str, gib: float) -> None:
    """Prints a figure of the GPU's memory; no-op on a CPU, where none is measured."""
    if torch.cuda.is_available():
        tell(name, round(gib, 2), "GiB")


def save(folder: Path, size: str, device: str, seed: int) -> None:
    """Saves a random policy with a tokenizer of bytes."""
    from tiny import byte_tokenizer, tiny_model

    model = tiny_model(seed, **MODELS[size])
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def sample(engine: RolloutEngine) -> list[Completion]:
    """Returns completions that depend on the weights alone."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=32, seed=7)
    return engine.run(engine.pool.generate(PROMPT, sampling, 8), 120, what="a call")


def sleep_and_publish(engine: RolloutEngine, folder: Path, version: int, before: float) -> float:
    """Puts the worker to sleep and publishes to it; returns the GiB that it freed."""
    started = time.perf_counter()
    engine.run(engine.publisher.sleep(), 120, what="putting the worker to sleep")
    tell(f"sleep {version}", round(time.perf_counter() - started, 3), "s")
    freed = before - used_gib()
    tell_memory(f"freed by sleep {version}", freed)
    started = time.perf_counter()
    engine.run(engine.publisher.publish(folder, version), 300, what="a publish")
    tell(f"wake and publish {version}", round(time.perf_counter() - started, 3), "s")
    return freed


def are_equal(first: list[Completion], second: list[Completion]) -> bool:
    """Returns True if ids are the same and log-probs differ by rounding alone."""
    return all(
        a.token_ids == b.token_ids
        and all(abs(x - y) < 0.02 for x, y in zip(a.logprobs, b.logprobs, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def check(options: argparse.Namespace, folder: Path) -> bool:
    """Returns True if the worker frees its memory and serves what was published."""
    first, other = folder / "first", folder / "other"
    save(first, options.size, options.device, 3)
    save(other, options.size, options.device, 4)
    config = RolloutConfig(
        dtype="bfloat16" if options.device == "cuda" else "float32",
        max_completion_length=64,
        max_model_len=512,
        max_num_seqs=32,
        kv_cache_gib=1,
        gpu_memory_utilization=0.4,
        enable_sleep_mode=True,
    )
    empty = used_gib()
    with RolloutEngine(config, str(first), folder / "logs") as engine:
        fresh = sample(engine)
        awake = used_gib()
        tell_memory("worker awake", awake - empty)
        freed = sleep_and_publish(engine, first, 1, awake)
        same = are_equal(fresh, sample(engine))
        tell("same tokens after the same weights", same)
        tell_memory("worker awake again", used_gib() - empty)
        sleep_and_publish(engine, other, 2, used_gib())
        changed = not are_equal(fresh, sample(engine))
        tell("other tokens after other weights", changed)
    if options.device == "cpu":
        return same and changed
    share = freed / (awake - empty)
    tell("share freed by sleep", round(share, 3), "share", FREED_ASLEEP)
    return same and changed and share >= FREED_ASLEEP


def main() -> int:
    """Runs the check; returns 1 if it fails."""
    options = options_of(__doc__ or "")
    with tempfile.TemporaryDirectory() as made:
        return 0 if check(options, Path(made)) else 1


if __name__ == "__main__":
    sys.exit(main())
