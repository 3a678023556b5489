"""Two ranks that gather weights under ZeRO-3: ``accelerate launch ... publishing_rank.py RUN.json``.

Each rank writes what it found to ``rank{N}.json``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import distributed as dist
from training_fakes import make_config

from train.deepspeed_zero import sharding_of
from train.distributed import leave, make_accelerator
from train.model.lora import add_adapters, merged_weights
from train.model.policy import load_model
from train.model.weights import PolicyWeights
from train.optimizer import TrainedModel


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
    (output / f"rank{accelerator.process_index}.json").write_text(json.dumps(result))


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
