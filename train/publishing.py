"""Publishes the policy of all ranks to the workers."""

from accelerate import Accelerator
from transformers import PreTrainedModel

from configs.schema import TrainingConfig
from rollout.weights.buckets import BUCKET_BYTES
from train.collaborators import Publisher
from train.distributed import give_back_cached_memory
from train.model.weights import HOST_BUCKET_BYTES, PolicyWeights
from train.sharding import Sharding


def publish(
    config: TrainingConfig,
    accelerator: Accelerator,
    model: PreTrainedModel,
    sharding: Sharding,
    publisher: Publisher | None,
    version: int,
) -> None:
    """Makes the workers serve ``model`` as ``version``. Every rank must call it.

    Args:
        config: The run's config.
        accelerator: This rank's.
        model: The policy, wrapped as ``sharding`` shards it.
        sharding: How ranks share the weights.
        publisher: Rank 0's; None on the other ranks, which gather with it.
        version: Number of the policy's version.
    """
    rollout, path = config.rollout, config.model.path
    if rollout.enable_sleep_mode:
        give_back_cached_memory(accelerator)
    size = BUCKET_BYTES.get(rollout.weight_transfer, HOST_BUCKET_BYTES)
    adapter_of = path if rollout.max_lora_rank else ""
    weights = PolicyWeights(model, sharding, size, adapter_of=adapter_of)
    try:
        if publisher:
            publisher.publish(weights, version)
    finally:
        weights.finish()  # ranks gather together, also if the publish failed in between
