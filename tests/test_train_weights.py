"""The policy's weights bucket by bucket: read again as read first, where one rank holds them all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from configs.schema import ModelConfig
from rollout.weights.buckets import buckets
from train.deepspeed_zero import DeepSpeedZero
from train.model.lora import add_adapters, lora_layers
from train.model.policy import load_model
from train.model.weights import PolicyWeights
from train.sharding import Unsharded

BUCKET_BYTES = 2**14


def _config(path: Path, lora_r: int) -> ModelConfig:
    return ModelConfig(path=str(path), dtype="float32", lora_r=lora_r)


@pytest.mark.parametrize("lora_r", [0, 4])
def test_any_bucket_can_be_read_again_by_another_thread_until_the_weights_change(lora_r, tiny_policy):
    config = _config(tiny_policy, lora_r)
    model = load_model(config)
    if lora_r:
        add_adapters(model, config)
        for layer in lora_layers(model).values():
            torch.nn.init.ones_(layer.lora_B["default"].weight)
    weights = PolicyWeights(model, Unsharded(), BUCKET_BYTES)
    first = [[value.clone() for value in part] for part in weights.parts()]
    assert len(first) == len(list(buckets(weights.entries, BUCKET_BYTES))) > 3
    with ThreadPoolExecutor(1) as thread:
        again = [thread.submit(weights.again, index).result() for index in reversed(range(len(first)))]
    for one, other in zip(first, reversed(again), strict=True):
        assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(one, other, strict=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert not torch.equal(weights.again(0)[0], first[0][0])


def test_weights_that_ranks_share_are_read_again_by_borrowing_their_parameters(tiny_policy):
    model = load_model(_config(tiny_policy, 0))
    whole = [
        [parameter.clone() for parameter in bucket]
        for bucket in PolicyWeights(model, Unsharded(), BUCKET_BYTES).parameters
    ]
    zero3 = DeepSpeedZero(stage=3, config={}, num_processes=2)
    asked: list[int] = []

    def borrow(index: int) -> list[torch.Tensor]:
        asked.append(index)
        return [parameter.detach() for parameter in whole[index]]

    with torch.no_grad():  # what this rank holds itself is not asked for
        for parameter in model.parameters():
            parameter.zero_()
    weights = PolicyWeights(model, zero3, BUCKET_BYTES, borrow=borrow)
    assert len(whole) > 3
    for index, bucket in enumerate(whole):
        got = weights.again(index)
        assert [tuple(value.shape) for value in got] == [tuple(value.shape) for value in bucket]
        assert all(torch.equal(one, other) for one, other in zip(got, bucket, strict=True))
    assert asked == list(range(len(whole)))
