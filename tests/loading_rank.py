"""One of two ranks that load a model under ZeRO-3: ``loading_rank.py MODEL SMALL``.

Prints what memory of its own the load took, beyond that of a SMALL model, and which weights differ.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.deepspeed_zero import prepare_for_deepspeed

prepare_for_deepspeed(on_gpu=False)  # before DeepSpeed is imported

import deepspeed  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig  # noqa: E402

from configs.schema import ModelConfig  # noqa: E402
from train.model.policy import load_model  # noqa: E402
from train.zero3_shards import whole_buckets  # noqa: E402

LOOK_SECONDS = 0.002
OPTIONS = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}


def own_bytes() -> int:
    """Anonymous memory of this process: what it has written itself, not the files that it maps."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def peak_growth(work: Callable[[], Any]) -> tuple[Any, int]:
    """What ``work`` returns, and by how much this process grew meanwhile."""
    before, done, most = own_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            most[0] = max(most[0], own_bytes() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return work(), most[0]
    finally:
        done.set()
        watching.join()


def differing(model: torch.nn.Module, folder: Path) -> list[str]:
    """Names of the weights that are not those of the files, bit for bit. A collective."""
    files = {}
    for file in sorted(folder.glob("*.safetensors")):
        held = safe_open(file, framework="pt")
        files |= dict.fromkeys(held.keys(), held)
    named = dict(model.named_parameters())
    assert named.keys() == files.keys()
    gathered = whole_buckets([[parameter] for parameter in named.values()], torch.device("cpu"))
    return [
        name
        for name, (whole,) in zip(named, gathered, strict=True)
        if not torch.equal(whole, files[name].get_tensor(name))
    ]


def main() -> None:
    """Loads and prints one line of JSON."""
    deepspeed.init_distributed("gloo")
    keep = HfDeepSpeedConfig(OPTIONS)  # the model is sharded while it lives
    load_model(ModelConfig(path=sys.argv[2], dtype="float32"))  # what libraries need once is not counted
    folder = Path(sys.argv[1])
    model, peak = peak_growth(lambda: load_model(ModelConfig(path=str(folder), dtype="float32")))
    whole = sum(parameter.ds_numel * 4 for parameter in model.parameters())
    found = {"peak": peak, "whole": whole, "differing": differing(model, folder)}
    print(json.dumps(found), flush=True)
    del keep


if __name__ == "__main__":
    main()
