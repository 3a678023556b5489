"""Two ranks that train on micro-batches of many lengths: ``accelerate launch ... gather_rank.py RUN.json``.

Rank 0 writes the number of all-gathers and the gradient's norm of every micro-batch.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.runtime.zero.partition_parameters as partitioning
from accelerate import Accelerator
from training_fakes import VOCAB, make_config, make_group
from transformers import set_seed

import train.model.logprobs as logprobs
from configs.schema import AlgoConfig, TrainingConfig
from rollout.records import REFINE
from train.batch.collate import MicroBatch, collate
from train.distributed import leave, make_accelerator
from train.loss.credit import credit
from train.model.lora import add_adapters
from train.model.policy import PolicyModel, load_model
from train.optimizer import TrainedModel

CHUNK_TOKENS = 8
"""Tokens that go through the LM head at once, so that micro-batches differ in the number of chunks."""
LENGTHS = ([4], [5, 6], [7] * 6, [16] * 8, [3], [9] * 12, [2, 2], [16] * 3)


def make_batch(lengths: list[int]) -> MicroBatch:
    """One row whose completions share a prompt of eight tokens."""
    group = make_group(random.Random(sum(lengths)), role=REFINE, prompt=8, lengths=lengths)
    return collate(credit([group], AlgoConfig()), roles=[REFINE])


def gradient_norms(config: TrainingConfig, accelerator: Accelerator, seen: Callable[[], None]) -> list[float]:
    """The norm of the gradient of each micro-batch; calls ``seen`` after each. The weights do not change."""
    logprobs.HEAD_CHUNK_BYTES = 4 * VOCAB * CHUNK_TOKENS
    model = load_model(config.model)
    set_seed(0)  # adapters are random
    if config.model.lora_r:
        add_adapters(model, config.model)
    policy = PolicyModel(model, temperature=1.0)
    trained = TrainedModel(accelerator, policy, config.algo, learning_rates={"": 0.0}, num_steps=100)
    norms = []
    for lengths in LENGTHS:
        batch = make_batch(lengths).to(accelerator.device)
        loss = trained.model(batch)[0].mean() / accelerator.num_processes
        outcome = trained.backward(loss, is_last=True)
        assert outcome is not None and outcome.applied
        norms.append(outcome.grad_norm)
        seen()
    return norms


def make_run(output: Path, model: str, changes: dict[str, Any]) -> TrainingConfig:
    """The config of both sides."""
    changes = {"model": changes, "algo": {"max_grad_norm": 0.0, "weight_decay": 0.0}}
    return make_config(output, Path(model), **changes)


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    output = Path(run["output_dir"])
    config = make_run(output, run["model"], run["changes"])
    accelerator = make_accelerator(config)
    # By default small weights stay whole on every rank, and all weights of this policy are small.
    options = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    options["stage3_param_persistence_threshold"] = 0
    gathers = [0]
    gather = partitioning._dist_allgather_fn

    def count(*arguments: Any, **options: Any) -> Any:
        gathers[-1] += 1
        return gather(*arguments, **options)

    partitioning._dist_allgather_fn = count
    norms = gradient_norms(config, accelerator, lambda: gathers.append(0))
    if accelerator.is_main_process:
        (output / "gathers.json").write_text(json.dumps({"gathers": gathers[:-1], "norms": norms}))


if __name__ == "__main__":
    main()
    leave()
