"""Bench: seconds in which weights reach a worker, against a plain copy of the same bytes (at most 3 x).

    python tests/bench/publishing.py [--json] [--model 135m] [--repeat 5]

A random model of SmolLM2's sizes in fp32 goes from the trainer's memory to a real vLLM worker on this
machine: through a directory, as ``train.engine_links`` does it (written, loaded, old version removed), and
over a gloo group. The plain copy writes one file of as many bytes beside them. The two take turns, and of
each the fastest counts: a disk that is still writing holds up both.

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import byte_tokenizer
from update import SIZES, make_model

from configs.schema import DataConfig, ModelConfig, RolloutConfig, TrainingConfig
from rollout.engine import RolloutEngine
from rollout.weights.buckets import BUCKET_BYTES
from train.engine_links import EnginePublisher
from train.model.policy import load_model
from train.model.weights import HOST_BUCKET_BYTES, PolicyWeights
from train.sharding import Unsharded

MIB = 2**20


def timed(work: Callable[[], object]) -> float:
    """Seconds, with nothing of before left to be written to the disk."""
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def publish_seconds(folder: Path, policy: Path, transfer: str, repeat: int) -> tuple[float, float]:
    """The fastest of several publishes and of as many copies between them; the first ones, which meet
    everything anew, are not counted."""
    config = TrainingConfig(
        output_dir=str(folder / transfer),
        model=ModelConfig(path=str(policy)),
        data=DataConfig(path="unused.jsonl"),
        rollout=RolloutConfig(
            dtype="float32",
            weight_transfer=transfer,
            kv_cache_gib=1,
            max_model_len=1024,
            max_completion_length=64,
        ),
    )
    model = _loaded(policy)
    with RolloutEngine(config.rollout, str(policy), folder / "logs") as engine:
        publisher = EnginePublisher(engine=engine, config=config)
        published, copied = [], []
        for version in range(1, repeat + 2):
            weights = PolicyWeights(model, Unsharded(), BUCKET_BYTES.get(transfer, HOST_BUCKET_BYTES))
            published.append(timed(lambda w=weights, v=version: publisher.publish(w, v)))
            copy = folder / "copy"
            copied.append(timed(lambda c=copy: shutil.copyfile(policy / "model.safetensors", c)))
            copy.unlink()
    return min(published[1:]), min(copied[1:])


def _loaded(policy: Path) -> torch.nn.Module:
    """The policy as the trainer holds it."""
    return load_model(ModelConfig(path=str(policy), dtype="float32"))


def main() -> int:
    """Measures both ways and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=tuple(SIZES), default="135m")
    parser.add_argument("--repeat", type=int, default=5, help="times, of which the fastest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        policy = folder / "policy"
        make_model(options.model, torch.float32, "sdpa").save_pretrained(policy)
        byte_tokenizer().save_pretrained(policy)
        megabytes = (policy / "model.safetensors").stat().st_size / MIB
        seconds = {way: publish_seconds(folder, policy, way, options.repeat) for way in ("directory", "gloo")}
        plain = min(copied for _, copied in seconds.values())
        for way, (ours, _) in seconds.items():
            row = {"bench": "publishing", "case": f"{megabytes:.0f} MiB, {way}", "ours": round(ours, 3)}
            row |= {"theirs": round(plain, 3), "ratio": round(plain / ours, 3), "unit": "s"}
            print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
