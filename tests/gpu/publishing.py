"""Publishing on this machine: seconds of every way from a trainer's memory to a real worker, and equality.

    python tests/gpu/publishing.py --device cuda --size full      # Qwen3's shapes of 0.6B and 8B in bf16
    python tests/gpu/publishing.py --device cpu --size tiny       # a directory and gloo

A random model is published to a worker that started with another one; then tokens sampled by the worker must
have the log-probs of the published model. "plain" copies the same bytes: a file, or a tensor on the device.
Prints one JSON object a line; ends with status 1 if an equality fails.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_script import options_of, teller

tell = teller("publishing")
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
}
"""Qwen3's sizes."""
HEADS = {"0.6b": 16, "8b": 32}
REPEAT = 3
"""Publishes of each kind; the fastest counts, and the first meets everything anew."""
TARGETS = {("8b", "ipc"): 1.0, ("8b", "nccl"): 2.0}
"""Seconds."""
TOLERANCE = {"cpu": 1e-3, "cuda": 0.15}
"""Largest difference of a log-prob, in fp32 on a CPU and in bf16 by other kernels on a GPU."""


def make_model(shape: str, device: str, seed: int) -> Any:
    """A random policy of a shape."""
    import torch
    from tiny import tiny_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if shape == "tiny":
        return tiny_model(seed)
    torch.manual_seed(seed)
    heads = {"num_attention_heads": HEADS[shape], "num_key_value_heads": 8, "head_dim": 128}
    sizes = {**SHAPES[shape], **heads, "vocab_size": 151_936, "rope_theta": 1e6}
    config = Qwen3Config(**sizes, tie_word_embeddings=shape != "8b", dtype="bfloat16")
    with torch.device(device):
        return Qwen3ForCausalLM._from_config(config, dtype=torch.bfloat16)


def ways(device: str) -> dict[str, str]:
    """Ways to publish on this machine, each with the reason why it is left out, if it is."""
    import torch

    if device == "cpu":
        return {"directory": "", "gloo": ""}
    one = "" if torch.cuda.device_count() > 1 else "needs 2 GPUs, this machine has 1"
    return {"directory": "", "ipc": "", "nccl": one}


def publishers(engine: Any, config: Any) -> dict[str, Any]:
    """``EnginePublisher``s of both ways that one worker can take."""
    from dataclasses import replace

    from train.engine_links import EnginePublisher

    by_directory = replace(config, rollout=replace(config.rollout, weight_transfer="directory"))
    return {
        config.rollout.weight_transfer: EnginePublisher(engine, config),
        "directory": EnginePublisher(engine, by_directory),
    }


def measure(shape: str, device: str, transfer: str, folder: Path) -> bool:
    """Publishes by ``transfer``, and by directory where that shares its worker; True if all are equal."""
    import torch
    from tiny import byte_tokenizer

    from configs.schema import DataConfig, ModelConfig, RolloutConfig, TrainingConfig
    from rollout.engine import RolloutEngine

    start = folder / "start"
    make_model(shape, device, seed=0).save_pretrained(start)
    byte_tokenizer().save_pretrained(start)
    model = make_model(shape, device, seed=1).eval()
    rollout = RolloutConfig(
        weight_transfer=transfer,
        enable_sleep_mode=transfer == "ipc",
        dtype="float32" if device == "cpu" else "bfloat16",
        gpu_memory_utilization=0.4 if transfer == "ipc" else 0.8,
        kv_cache_gib=1,
        max_model_len=512,
        max_completion_length=64,
    )
    config = TrainingConfig(
        output_dir=str(folder / transfer),
        model=ModelConfig(path=str(start)),
        data=DataConfig(path="unused.jsonl"),
        rollout=rollout,
    )
    version, equal = 0, True
    if transfer == "nccl":  # the trainer's device is chosen by now: this is for the worker
        os.environ["CUDA_VISIBLE_DEVICES"] = "1"
    with RolloutEngine(rollout, str(start), folder / "logs") as engine:
        for way, publisher in publishers(engine, config).items():
            if way == "directory" and transfer == "nccl":  # measured with ipc
                continue
            if way == "directory":
                from rollout.weights.publish import DirectoryPublisher

                engine.__dict__["publisher"] = DirectoryPublisher(
                    engine.pool, rollout.publish_timeout_seconds, sleeps=rollout.enable_sleep_mode
                )
            seconds = []
            for _ in range(REPEAT):
                if rollout.enable_sleep_mode:
                    publisher.sleep()
                version += 1
                seconds.append(publish_once(publisher, model, way, version))
            report(shape, device, way, seconds, plain_seconds(model, way, folder))
            with torch.no_grad():
                same = serves(engine, model, version, TOLERANCE[device])
            tell(f"{shape} {way} serves what was published", same)
            equal &= same
    return equal


def publish_once(publisher: Any, model: Any, way: str, version: int) -> float:
    """Seconds of one publish as the trainer makes it, gathering included."""
    from rollout.weights.buckets import BUCKET_BYTES
    from train.model.weights import HOST_BUCKET_BYTES, PolicyWeights
    from train.sharding import Unsharded

    began = time.perf_counter()
    publisher.publish(PolicyWeights(model, Unsharded(), BUCKET_BYTES.get(way, HOST_BUCKET_BYTES)), version)
    return time.perf_counter() - began


def plain_seconds(model: Any, way: str, folder: Path) -> float:
    """Seconds of a copy of the same bytes: of a file for a directory, else of a tensor on its device."""
    import torch

    size = sum(parameter.nbytes for parameter in model.parameters())
    source = torch.empty(2**26, dtype=torch.uint8, device=model.device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        if way == "directory":
            for file in folder.glob("start/*.safetensors"):
                shutil.copyfile(file, folder / "copy")
        else:
            for _ in range(0, size, source.nbytes):
                target.copy_(source)
            if source.is_cuda:
                torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    (folder / "copy").unlink(missing_ok=True)
    return min(seconds)


def report(shape: str, device: str, way: str, seconds: list[float], plain: float) -> None:
    """Prints the figures of one way."""
    tell(f"{shape} {way} on {device}", round(min(seconds), 4), "s", TARGETS.get((shape, way)))
    tell(f"{shape} {way} on {device}, first publish", round(seconds[0], 4), "s")
    tell(f"{shape} {way} on {device}, plain copy", round(plain, 4), "s")


def serves(engine: Any, model: Any, version: int, tolerance: float) -> bool:
    """True if a sample has the version and the log-probs of ``model``."""
    import torch
    from fakes import prompt_of

    from rollout.records import Sampling

    prompt = prompt_of(*range(40, 70))
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=32, seed=7)
    (completion,) = engine.run(engine.pool.generate(prompt, sampling), 120, what="a call")
    ids = torch.tensor([[*prompt.ids, *completion.token_ids]], device=model.device)
    rows = model(ids).logits[0, len(prompt.ids) - 1 : -1].float().log_softmax(-1)
    expected = rows.gather(1, ids[0, len(prompt.ids) :, None])[:, 0].cpu()
    difference = (torch.tensor(completion.logprobs) - expected).abs().max().item()
    return difference <= tolerance and {span.version for span in completion.versions} == {version}


def main() -> int:
    """Measures every way that this machine has; returns the exit status."""
    options = options_of(__doc__ or "")
    shapes = ("tiny",) if options.size == "tiny" else ("0.6b", "8b")
    equal = True
    for shape in shapes:
        for way, reason in ways(options.device).items():
            if reason:
                tell(f"{shape} {way}", f"skipped: {reason}")
            elif way != "directory":  # a directory is measured on the worker of another way
                with tempfile.TemporaryDirectory() as made:
                    equal &= measure(shape, options.device, way, Path(made))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
