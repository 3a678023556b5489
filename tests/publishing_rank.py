"""Two ranks that gather weights under ZeRO-3: ``accelerate launch ... publishing_rank.py RUN.json``.

They are gathered bucket by bucket, then published through a feed, then read again by rank 0 alone. Each rank
writes what it found to ``rank{N}.json``.
"""

import json
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import distributed as dist
from training_fakes import make_config

from rollout.weights import feed as feed_module
from rollout.weights.buckets import views
from rollout.weights.feed import Feed
from train.deepspeed_zero import sharding_of
from train.distributed import leave, make_accelerator
from train.model.lora import add_adapters, merged_weights
from train.model.policy import load_model
from train.model.weights import PolicyWeights
from train.optimizer import TrainedModel
from train.zero3_loans import Zero3Loans

SECONDS = 60.0


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    output = Path(run["output_dir"])
    config = make_config(output, Path(run["model"]), model=run["changes"])
    accelerator = make_accelerator(config)
    plugin = accelerator.state.deepspeed_plugin
    assert plugin is not None
    if run["shards_all"]:  # by default DeepSpeed keeps small parameters whole on every rank
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    model = load_model(config.model)
    if config.model.lora_r:
        add_adapters(model, config.model)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    torch.nn.init.normal_(parameter, std=0.1)
    trained = TrainedModel(accelerator, model, config.algo, learning_rates={"": 1e-3}, num_steps=10)
    loss = trained.model(torch.arange(5, 40)[None]).logits.float().square().mean()
    trained.backward(loss, is_last=True)
    sharding = sharding_of(accelerator)
    sharded = sum(parameter.numel() == 0 for parameter in model.parameters())
    calls = _counted()
    weights = PolicyWeights(model, sharding, run["bucket_bytes"])
    names = iter([entry.name for entry in weights.entries])
    found, largest = {}, 0
    for part in weights.parts():
        largest = max(largest, sum(value.nbytes for value in part))
        found |= {next(names): value.clone() for value in part}
    made = list(calls)
    differing = []
    for weight in merged_weights(model):
        with sharding.gathered(weight.parameters):
            whole = [parameter.detach() for parameter in weight.parameters]
            if not torch.equal(found[weight.name], weight.value(whole)):
                differing.append(weight.name)
    result = {"collectives": len(made), "sharded": sharded, "differing": differing}
    result |= {"largest": largest, "bytes": sum(value.nbytes for value in found.values())}
    loans = Zero3Loans(accelerator, SECONDS)
    published = PolicyWeights(model, sharding, run["bucket_bytes"], borrow=loans.borrow)
    loans.lend(published.parameters)
    if accelerator.is_main_process:
        result |= _published(published, found)
        loans.end()
        result["after"] = _refused(lambda: loans.borrow(0))
    else:
        published.finish()
        loans.end()  # waits in this thread while rank 0 reads
    broken = Zero3Loans(accelerator, 2.0)
    broken.lend(published.parameters if accelerator.is_main_process else [])
    if accelerator.is_main_process:
        result["late"] = _refused(lambda: broken.borrow(0))
    result["end"] = _refused(broken.end)
    (output / f"rank{accelerator.process_index}.json").write_text(json.dumps(result))


def _refused(call: Callable[[], Any]) -> str:
    """The error that a call raises; empty if it raises none."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def _published(weights: PolicyWeights, expected: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Publishes to a sender that reads each bucket once, then reads all again; both must be ``expected``."""
    gathered, sent = _alive(dist, "all_gather_into_tensor"), _alive(feed_module, "pack")
    feed = Feed(weights.entries, weights.bucket_bytes, torch.device("cpu"), weights.again)
    wrong: list[str] = []

    def take(index: int) -> None:
        bucket = feed.buckets[index]
        for entry, value in zip(
            bucket, views(feed.bucket(index, SECONDS, threading.Event()), bucket), strict=True
        ):
            if not torch.equal(value, expected[entry.name]):
                wrong.append(entry.name)
        feed.sent(index)

    with ThreadPoolExecutor(2) as threads:
        sending = threads.submit(lambda: [take(index) for index in range(len(feed.buckets))])
        for part in weights.parts():
            feed.put(part)
        del part
        sending.result()
        feed.stop_reading()
        most = {"packed_at_once": sent["most"], "gathered_at_once": gathered["most"]}
        left = len(sent["alive"]) + len(gathered["alive"])
        list(threads.map(take, reversed(range(len(feed.buckets)))))
    return {**most, "left": left, "buckets": len(feed.buckets), "wrong": wrong}


def _alive(module: Any, name: str) -> dict[str, Any]:
    """Counts the tensors that a function fills or returns, and how many of them were alive at once."""
    counts: dict[str, Any] = {"alive": weakref.WeakSet(), "most": 0}
    original = getattr(module, name)

    def count(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        counts["alive"].add(result if isinstance(result, torch.Tensor) else args[0])
        counts["most"] = max(counts["most"], len(counts["alive"]))
        return result

    setattr(module, name, count)
    return counts


def _counted() -> list[str]:
    """Names of the collectives that are called from now on."""
    calls: list[str] = []
    for name in ("all_gather_into_tensor", "all_gather", "broadcast", "all_reduce", "_all_gather_base"):
        original = getattr(dist, name, None)
        if original is None:
            continue

        def count(*args: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            calls.append(_name)
            return _original(*args, **options)

        setattr(dist, name, count)
    return calls


if __name__ == "__main__":
    main()
    leave()
